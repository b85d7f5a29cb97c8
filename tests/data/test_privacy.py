"""Names and IDs of patients are found in texts."""

import pytest

from crkd_cli.data.privacy import patient_words, reveals


@pytest.mark.parametrize(
    ("text", "revealed"),
    [
        ("images/DOE_JANE/1.dcm", True),
        ("doejane2", True),
        ("scan 0042", True),
        ("IM0042", False),
        ("IM10042.dcm", False),
        ("x1", False),
    ],
)
def test_parts_of_names_and_whole_numbers(text, revealed):
    assert reveals(text, patient_words("Doe^Jane^X=多", "0042")) is revealed
