"""Plug-ins by file name: a plug-in is one file in a folder, imported only when it is chosen."""

from importlib import import_module
from pathlib import Path
from typing import Generic, TypeVar

from crkd_cli.errors import UsageError, did_you_mean

Base = TypeVar("Base")
Plugin = TypeVar("Plugin")


class Registry(Generic[Base]):
    """The plug-in classes of one package. `names()` reads file names only, so that `--help` costs no import."""

    def __init__(self, package: str, folder: str | Path, kind: str) -> None:
        self._package = package
        self._folder = Path(folder)
        self._kind = kind
        self._plugins: dict[str, type[Base]] = {}

    def names(self) -> list[str]:
        """All plug-in names, sorted."""
        return sorted(file.stem for file in self._folder.glob("*.py") if file.stem not in ("__init__", "base"))

    def register(self, plugin: type[Plugin]) -> type[Plugin]:
        """Class decorator: the plug-in's name is its file's name."""
        self._plugins[plugin.__module__.rpartition(".")[2]] = plugin  # type: ignore[assignment]
        return plugin

    def __getitem__(self, name: str) -> type[Base]:
        """The plug-in called `name`. Raises UsageError, naming the nearest, if there is none."""
        if name not in self.names():
            raise UsageError(f"no {self._kind} is called {name!r}; {did_you_mean(name, self.names())}")
        import_module(f"{self._package}.{name}")
        return self._plugins[name]
