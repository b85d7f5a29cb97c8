"""The steps of the GPU work in their order, and the training runs that each consists of."""

from dataclasses import dataclass

from crkd_cli.data.splits import Part
from crkd_cli.inference.inferer import Protocol
from crkd_cli.methods import METHODS

# Checkpoint, protocol, part. Part None with the paper protocol: what was published, for ACDC val and test together.
Score = tuple[str, Protocol, Part | None]
LAST: tuple[Score, ...] = (("last", "strict", "test"), ("last", "paper", "test"))
BEST: tuple[Score, ...] = (("best", "strict", "test"), ("best", "paper", "test"))
ACDC: tuple[Score, ...] = (*LAST, ("last", "paper", None), *BEST, ("best", "paper", None))
VAL: tuple[Score, ...] = (
    ("best", "strict", "val"),
)  # for choices, which must not see the test cases

SETTINGS = (("acdc", "3"), ("la", "4"), ("acdc", "7"), ("la", "8"))
BOTH = ("crkd", "supervised")
TERMS = ("pixel", "feature", "semantic", "entropy")  # CPKD, CFKD, CSD, LEC
# CRKD's weights that were never published: other values, each tried alone.
FREE = (
    "pseudo=0.5",
    "pseudo=2",
    "pixel=0.1",
    "feature=0.1",
    "semantic=0.1",
    "entropy=0.1",
    "temperature=0.07",
    "rampup=0.1",
    "rampup=0.6",
)


@dataclass(frozen=True)
class Trial:
    """One training run and the ways in which it is scored."""

    dataset: str
    labeled: str  # as --labeled takes it
    method: str
    seed: int = 1337
    own: tuple[str, ...] = ()  # settings of the method, KEY=VALUE
    steps: int | None = None  # None: the configuration's
    choice: bool = False  # made to choose a setting: scored on the validation cases alone

    @property
    def name(self) -> str:
        """acdc-3-crkd-1337, acdc-3-crkd-ramp=0.1-6000-1337."""
        words = [
            self.dataset,
            self.labeled.replace("%", "pct"),
            self.method,
            *self.own,
            self.steps,
            self.seed,
        ]
        return "-".join(str(word) for word in words if word is not None)

    @property
    def sets(self) -> list[str]:
        """What --set must say."""
        length = [] if self.steps is None else [f"train.steps={self.steps}"]
        return [
            *length,
            f"train.seed={self.seed}",
            *(f"methods.{self.method}.{one}" for one in self.own),
        ]

    @property
    def scores(self) -> tuple[Score, ...]:
        return VAL if self.choice else ACDC if self.dataset == "acdc" else LAST


def trials() -> dict[str, list[Trial]]:
    """The steps that train, in the order of their work. Methods are those that the package has."""
    others = [name for name in METHODS.names() if name not in BOTH]
    return {
        "acdc-3": [Trial("acdc", "3", method) for method in ("crkd", "unimatch", "supervised")],
        "la-4": [Trial("la", "4", method) for method in BOTH],
        "free-weights": [
            Trial("acdc", "3", "crkd", seed, own, 6000, choice=True)
            for own in [(), *((one,) for one in FREE)]
            for seed in (1337, 1338)
        ],
        "acdc-7": [Trial("acdc", "7", method) for method in BOTH],
        "la-8": [Trial("la", "8", method) for method in BOTH],
        "seeds": [
            Trial(*setting, method, seed)
            for seed in (1338, 1339)
            for setting in SETTINGS
            for method in BOTH
        ],
        "methods": [
            Trial(*s, method)
            for s in SETTINGS
            for method in others
            if (s, method) != (SETTINGS[0], "unimatch")
        ],
        "pictures": [
            Trial(dataset, "5%", method) for dataset in ("isic2018", "kvasir") for method in BOTH
        ],
        "ablation": [
            Trial(*setting, "crkd", own=(f"{term}=0",))
            for setting in SETTINGS[:2]
            for term in TERMS
        ],
    }
