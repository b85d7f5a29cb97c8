"""Semi-supervised segmentation of medical images, in 2D and 3D, from raw scans to masks.

The commands are also functions: `import crkd_cli as crkd`, then `crkd.train("la", 4)`; see
`docs/python.md`.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from crkd_cli.api import (
        TrainingResult,
        evaluate,
        make_splits,
        predict,
        prepare,
        suggest,
        train,
    )
    from crkd_cli.data.folds import Folds
    from crkd_cli.data.splits import Split
    from crkd_cli.data.store import Store
    from crkd_cli.evaluation.evaluate import EvaluationReport
    from crkd_cli.evaluation.suggest import Suggestion, Suggestions
    from crkd_cli.inference.case_predictor import PredictOptions
    from crkd_cli.inference.model import Model, load_model
    from crkd_cli.inference.predict import PredictResult

__version__ = "0.1.0"
__all__ = [
    "EvaluationReport",
    "Folds",
    "Model",
    "PredictOptions",
    "PredictResult",
    "Split",
    "Store",
    "Suggestion",
    "Suggestions",
    "TrainingResult",
    "__version__",
    "evaluate",
    "load_model",
    "make_splits",
    "predict",
    "prepare",
    "suggest",
    "train",
]


def __getattr__(name: str) -> Any:
    """Load the functions with the first of them, since PyTorch takes seconds."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from crkd_cli import api

    return getattr(api, name)
