"""Find the parts of patients' names and IDs in the names of files and in texts."""

import re
from collections.abc import Iterable

MIN_WORD = 3  # characters; shorter parts are in too many names


def patient_words(name: str, id: str) -> frozenset[str]:
    """Return the parts of a patient's name (as in DICOM, Doe^Jane) and the ID, in lower case."""
    parts = [id.strip(), *re.split(r"[\s^=,]+", name)]
    return frozenset(part.lower() for part in parts if len(part) >= MIN_WORD)


def reveals(text: str, words: Iterable[str]) -> bool:
    """Tell whether `text` contains one of `words`, in upper or lower case.

    Words without a letter, such as the ID 001, count only if they stand alone: IM0001 contains no
    name.
    """
    text = text.lower()
    found = [word for word in words if word in text]
    return any(
        re.search("[^0-9]", word) or re.search(rf"(?<![0-9a-z]){word}(?![0-9a-z])", text)
        for word in found
    )
