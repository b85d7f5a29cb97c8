"""Plug-ins by name: each is one file, imported only when it is chosen."""

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
    """The plug-in classes of one kind.

    They come from the files of a package, from entry points of installed packages, and from files
    that a user adds. Listing the names imports none of them, so that `--help` is fast.

    Args:
        package: the package that holds the built-in plug-ins and `base.py` with their base class.
        folder: the folder of that package.
        kind: what a plug-in is called in messages, such as "method".
        group: the entry point group of other packages' plug-ins, if there is one.
    """

    def __init__(self, package: str, folder: str | Path, kind: str, group: str = "") -> None:
        self._package = package
        self._folder = Path(folder)
        self._kind = kind
        self._group = group
        self._classes: dict[str, list[type[Base]]] = {}  # by module
        self._sources: dict[str, bytes] = {}  # of the files that users added, by name

    def names(self) -> list[str]:
        """Return the names of all installed plug-ins, sorted."""
        return sorted({*self.builtin_names(), *self._entry_points()})

    def builtin_names(self) -> list[str]:
        """Return the names of the package's own plug-ins, sorted."""
        stems = {file.stem for file in self._folder.glob("*.py")}
        return sorted(stems - {"__init__", "base"})

    def is_builtin(self, plugin: type[Base]) -> bool:
        """Return whether `plugin` belongs to the package itself."""
        package, _, name = plugin.__module__.rpartition(".")
        return package == self._package and name in self.builtin_names()

    def register(self, plugin: type[Plugin]) -> type[Plugin]:
        """Register a class under the name of its file or of its entry point (decorator)."""
        self._classes.setdefault(plugin.__module__, []).append(plugin)  # type: ignore[arg-type]
        return plugin

    def add(self, file: Path) -> str:
        """Run a user's `file` as if it were in the package; return the plug-in's name.

        The name is that of the file without .py. Raises UsageError if the file cannot be read or
        run, if its name is taken, or if it does not register exactly one plug-in.
        """
        name, module = file.stem, f"{self._package}.{file.stem}"
        if not name.isidentifier():
            raise UsageError(
                f"{file}: rename the file; {name!r} cannot name a {self._kind} (use letters, "
                "digits and _)"
            )
        if (self._folder / f"{name}.py").exists() or name in self._entry_points():
            raise UsageError(f"{file}: rename the file; the name {name} is taken")
        try:
            source = file.read_bytes()
        except OSError as error:
            raise UsageError(
                f"cannot read {file}: {error.strerror}; give the file of your {self._kind}"
            ) from error
        # Typing resolves annotations through sys.modules.
        namespace = sys.modules[module] = ModuleType(module)
        namespace.__file__ = str(file)
        self._classes.pop(module, None)
        self._run(str(file), lambda: exec(compile(source, str(file), "exec"), vars(namespace)))
        self._single_class(module, str(file))
        self._sources[name] = source
        return name

    def source(self, name: str) -> bytes | None:
        """Return the content of the user's file called `name`; None for installed plug-ins."""
        return self._sources.get(name)

    def check_name(self, name: str) -> None:
        """Raise UsageError that suggests the nearest name unless a plug-in is called `name`.

        Imports none.
        """
        names = [*self.names(), *self._sources]
        if name not in names:
            raise UsageError(f"no {self._kind} is called {name!r}; {did_you_mean(name, names)}")

    def __getitem__(self, name: str) -> type[Base]:
        """Return the plug-in called `name`.

        Raises UsageError that suggests the nearest name if there is none, or if the plug-in of
        another package is broken.
        """
        module = where = f"{self._package}.{name}"
        if name in self.builtin_names():
            import_module(module)
        elif name not in self._sources:
            self.check_name(name)
            module = self._entry_points()[name]
            where = f"{self._kind} {name} (module {module} of another package)"
            self._run(where, lambda: import_module(module))
        return self._single_class(module, where)

    def _entry_points(self) -> dict[str, str]:
        """Return the modules of other packages' plug-ins by name."""
        if not self._group:
            return {}
        from importlib.metadata import entry_points

        return {entry.name: entry.value for entry in entry_points(group=self._group)}

    def _run(self, where: str, code: Callable[[], object]) -> None:
        """Run foreign code; raise UsageError, with the line in the file `where`, if it fails."""
        try:
            code()
        except (Exception, SystemExit) as error:
            problem = describe_exception(where, error)
            raise UsageError(
                f"{where} cannot be loaded ({problem}); correct it, --verbose shows more"
            ) from error

    def _single_class(self, module: str, where: str) -> type[Base]:
        """Return the one plug-in that `module` registers; raise UsageError if it is not one."""
        classes = self._classes.get(module, [])
        if len(classes) != 1:
            names = ", ".join(plugin.__name__ for plugin in classes)
            found = f"{len(classes)} classes ({names})" if names else "no class"
            decorator = f"@{self._kind.split()[-1].upper()}S.register"
            raise UsageError(f"{where} registers {found}; put {decorator} above the {self._kind}")
        (plugin,) = classes
        base = f"{self._package}.base"
        if not any(parent.__module__ == base for parent in plugin.__mro__):
            raise UsageError(
                f"{where}: class {plugin.__name__} is not a {self._kind}; derive it from the class "
                f"in {base}"
            )
        if isabstract(plugin):
            raise UsageError(
                f"{where}: class {plugin.__name__} lacks an abstract method of {base}; implement it"
            )
        return plugin
