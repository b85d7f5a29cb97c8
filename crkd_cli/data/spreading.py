"""Spread the classes of a dataset over the parts of a split."""

from collections import Counter, deque
from collections.abc import Iterable, Mapping, Sequence

ClassSet = frozenset[int]  # the classes that a group holds, and EMPTY
EMPTY = 0  # a case of the group has no foreground


def draw(
    order: Sequence[str], class_sets: Mapping[str, ClassSet], count: int, later_parts: int = 0
) -> list[str]:
    """Draw `count` of the groups in `order` so that all classes are among them, if possible.

    A class lags behind if none of the drawn groups holds it, or fewer than its share of all groups,
    rounded down. The group that holds the most classes that lag behind is drawn next. Of several,
    one with a case without foreground is drawn if these lag behind, and then the first in `order`.
    So every prefix of the result has its share of each class, and if all groups hold the same
    classes, the result is a prefix of `order`.

    The last groups that hold a class are reserved for the `later_parts` of the split: one for each
    part, or fewer if this part would get none, but at least one. They are drawn only if there is no
    other group.
    """
    holders = Counter(k for group in order for k in class_sets[group])
    reserved = {
        k: max(1, min(later_parts, number - 1)) if later_parts else 0
        for k, number in holders.items()
        if k != EMPTY
    }
    queues: dict[ClassSet, deque[tuple[int, str]]] = {}  # groups with their positions
    for position, group in enumerate(order):
        queues.setdefault(class_sets[group], deque()).append((position, group))

    drawn: list[str] = []
    held: Counter[int] = Counter()
    for size in range(1, count + 1):
        lagging = {
            k for k, number in holders.items() if held[k] < max(1, number * size // len(order))
        }
        needed_later = {k for k, number in reserved.items() if holders[k] - held[k] <= number}
        free = [candidate for candidate in queues if candidate.isdisjoint(needed_later)]
        chosen = _most_lagging(free or queues, lagging, queues)
        drawn.append(queues[chosen].popleft()[1])
        held.update(chosen)
        if not queues[chosen]:
            del queues[chosen]
    return drawn


def _most_lagging(
    candidates: Iterable[ClassSet],
    lagging: set[int],
    queues: Mapping[ClassSet, deque[tuple[int, str]]],
) -> ClassSet:
    """Return the candidate with the most classes that lag behind, as `draw` says."""
    classes = lagging - {EMPTY}
    empty = lagging & {EMPTY}

    def rank(candidate: ClassSet) -> tuple[int, int, tuple[int, str]]:
        return -len(classes & candidate), -len(empty & candidate), queues[candidate][0]

    return min(candidates, key=rank)
