"""phantom3d: synthetic left atria, the small 3D counterpart of `phantom`."""

from crkd_cli.data import synthetic
from crkd_cli.data.sources import SOURCES
from crkd_cli.data.sources.phantom import Phantom


@SOURCES.register
class Phantom3d(Phantom):
    """40 volumes of 40×64×64 with one structure."""

    cases = 40
    spacing = (1.25, 1.25, 1.25)
    classes = ("background", "left atrium")
    intensity = "zscore"

    @staticmethod
    def draw(number: int) -> synthetic.Case:
        return synthetic.atrium(number)
