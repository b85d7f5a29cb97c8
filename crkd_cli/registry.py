"""Plug-ins by name: a plug-in is one file, imported only when it is chosen."""

import sys
from collections.abc import Callable
from importlib import import_module
from inspect import isabstract
from pathlib import Path
from types import ModuleType
from typing import Generic, TypeVar

from crkd_cli.errors import UsageError, describe_exception, did_you_mean

Base = TypeVar("Base")
Plugin = TypeVar("Plugin")


class Registry(Generic[Base]):
    """The plug-in classes of one kind: files of a package, entry points of installed ones (`group`), and files that are added.

    `names()` imports no plug-in, so that `--help` costs nothing.
    """

    def __init__(self, package: str, folder: str | Path, kind: str, group: str = "") -> None:
        self._package = package
        self._folder = Path(folder)
        self._kind = kind
        self._group = group
        self._plugins: dict[str, list[type[Base]]] = {}  # by module
        self._files: dict[str, bytes] = {}  # source of those that were added, by name

    def names(self) -> list[str]:
        """The names of all plug-ins that are installed, sorted."""
        return sorted({*self.builtin_names(), *self._installed()})

    def builtin_names(self) -> list[str]:
        """The names of the package's own plug-ins, sorted."""
        return sorted(
            file.stem for file in self._folder.glob("*.py") if file.stem not in ("__init__", "base")
        )

    def is_builtin(self, plugin: type[Base]) -> bool:
        """Whether a plug-in is one of the package's own."""
        package, _, name = plugin.__module__.rpartition(".")
        return package == self._package and name in self.builtin_names()

    def register(self, plugin: type[Plugin]) -> type[Plugin]:
        """Class decorator: the plug-in's name is its file's name, or that of the entry point which names its module."""
        self._plugins.setdefault(plugin.__module__, []).append(plugin)  # type: ignore[arg-type]
        return plugin

    def add(self, file: Path) -> str:
        """Runs the user's own `file` as if it lay in the package; gives the plug-in's name, the file's without .py.

        Raises UsageError: the file cannot be read or run, its name is taken, or it registers no plug-in or several.
        """
        name, module = file.stem, f"{self._package}.{file.stem}"
        if not name.isidentifier():
            raise UsageError(
                f"{file}: rename the file; {name!r} can be no {self._kind}'s name (letters, digits and _)"
            )
        if (self._folder / f"{name}.py").exists() or name in self._installed():
            raise UsageError(
                f"{file}: rename the file; the name {name} is taken by a {self._kind} that is installed"
            )
        try:
            source = file.read_bytes()
        except OSError as error:
            raise UsageError(
                f"cannot read {file}: {error.strerror}; give the file of your {self._kind}"
            ) from error
        there = sys.modules[module] = ModuleType(module)  # typing looks names up there
        there.__file__ = str(file)
        self._plugins.pop(module, None)
        self._run(str(file), lambda: exec(compile(source, str(file), "exec"), vars(there)))
        self._only(module, str(file))
        self._files[name] = source
        return name

    def source(self, name: str) -> bytes | None:
        """What stood in the user's own file of this name; None for what is installed."""
        return self._files.get(name)

    def __getitem__(self, name: str) -> type[Base]:
        """The plug-in called `name`. Raises UsageError, naming the nearest, if there is none or another package's is broken."""
        module = where = f"{self._package}.{name}"
        if name in self.builtin_names():
            import_module(module)
        elif name not in self._files:
            installed = self._installed()
            if name not in installed:
                raise UsageError(
                    f"no {self._kind} is called {name!r}; {did_you_mean(name, [*self.names(), *self._files])}"
                )
            module = installed[name]
            where = f"{self._kind} {name} (module {module} of another package)"
            self._run(where, lambda: import_module(module))
        return self._only(module, where)

    def _installed(self) -> dict[str, str]:
        """Modules of other packages, by the names of their entry points."""
        if not self._group:
            return {}
        from importlib.metadata import entry_points

        return {entry.name: entry.value for entry in entry_points(group=self._group)}

    def _run(self, where: str, code: Callable[[], object]) -> None:
        """Runs foreign code. Raises UsageError, with the line in the file `where`, whatever happens in it."""
        try:
            code()
        except (Exception, SystemExit) as error:
            raise UsageError(
                f"{where} cannot be loaded ({describe_exception(where, error)}); correct it, --verbose shows more"
            ) from error

    def _only(self, module: str, where: str) -> type[Base]:
        """The plug-in that `module` registers. Raises UsageError if there is not exactly one, or it is none of this kind."""
        plugins = self._plugins.get(module, [])
        if len(plugins) != 1:
            names = f" ({', '.join(plugin.__name__ for plugin in plugins)})" if plugins else ""
            mark = f"@{self._kind.split()[-1].upper()}S.register"
            raise UsageError(
                f"{where} registers {len(plugins)} classes{names}; put {mark} above one, the {self._kind}"
            )
        (plugin,) = plugins
        if not any(parent.__module__ == f"{self._package}.base" for parent in plugin.__mro__):
            raise UsageError(
                f"{where}: class {plugin.__name__} is no {self._kind}; derive it from that of {self._package}.base"
            )
        if isabstract(plugin):
            raise UsageError(
                f"{where}: class {plugin.__name__} lacks what {self._package}.base declares abstract; write it"
            )
        return plugin
