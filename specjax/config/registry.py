"""Which names a configuration may use, and the constructors they stand for.

A configuration names modules, and a module that is imported runs. So `Registry.check_import` judges every import of
every file before `Registry.module` imports the first one, and a selector is a public name of an allowed module and
nothing else: no attribute of an attribute, no re-exported module, no private name.
"""

import dataclasses
import importlib
import importlib.util
import inspect
import pathlib
import pkgutil
import re
import sys
from typing import Any, Callable, Iterable, Mapping

from specjax.config import signatures
from specjax.config import statements
from specjax.core import errors

# What the constructors that a configuration may call are exported by.
PACKAGES = tuple(f'specjax.{name}' for name in ('rules', 'drafters', 'routers'))

_LIBRARY = pathlib.Path(__file__).resolve().parents[1]
_MODULE = re.compile(r'[A-Za-z]\w*(\.[A-Za-z]\w*)*', re.ASCII)


@dataclasses.dataclass(frozen=True, eq=False)
class Constructor:
  """A function or class that a configuration may bind. One object per function: equal means the same function."""

  module: str
  name: str
  short: str  # What a flag calls it: the entry by its name, others with the last part of their module.
  function: Callable[..., Any]
  parameters: Mapping[str, signatures.Parameter]


class Registry:
  """The constructors of one configuration.

  Args:
    entry: the function or class that is run; its module may be imported, for the entry only.
    allow_modules: further packages whose constructors may be used.

  Raises:
    ConfigError: when `allow_modules` names the standard library, gin or something that is not a module name.
  """

  def __init__(self, *, entry: Callable[..., Any] | None = None, allow_modules: Iterable[str] = ()):
    self._allow_modules = tuple(allow_modules)
    for module in self._allow_modules:
      top = module.split('.')[0]
      if not _MODULE.fullmatch(module) or top in sys.stdlib_module_names or top == 'gin' or module == 'specjax':
        raise errors.ConfigError(
            what='allowed module', where='--allow_module', got=module, expected='a package with your own constructors')
    self._packages = (*PACKAGES, *self._allow_modules)
    self._constructors: dict[int, Constructor] = {}
    self.entry: Constructor | None = None
    if entry is not None:
      self.entry = self._constructor(entry.__module__, entry.__name__, entry, short=entry.__name__)

  def check_import(self, statement: statements.Import) -> None:
    """Refuses a module that is not on the list, without importing anything."""
    module = statement.module
    if not _MODULE.fullmatch(module) or not (self._is_allowed(module) or self._is_of_entry(module)):
      names = ', '.join(package.split('.')[1] for package in PACKAGES)
      raise errors.ConfigError(
          what='import', where=statement.where, got=statements.shown(module),
          expected=f'a package of specjax ({names}), the module of what is run, or one named by --allow_module',
          fix=signatures.did_you_mean(module, [*self._packages, *self._entry_modules()]))

  def module(self, name: str, where: str) -> Any:
    """The imported module; only for names that `check_import` has let pass."""
    try:
      spec = importlib.util.find_spec(name)
      if spec is not None:
        _check_origin(spec, name, where)
        return importlib.import_module(name)
    except errors.ConfigError:
      raise
    except Exception as error:  # Importing is running somebody's code: whatever it raised, the import is what failed.
      raise _import_error(name, where, error) from error
    parent = name.rpartition('.')[0]
    siblings = pkgutil.iter_modules(getattr(sys.modules.get(parent), '__path__', ()))
    raise errors.ConfigError(
        what='module', where=where, got=name, expected='one that exists',
        fix=signatures.did_you_mean(name, [f'{parent}.{sibling.name}' for sibling in siblings]))

  def resolve(self, selector: str, imports: Iterable[statements.Import], where: str) -> Constructor:
    """The constructor that `selector` stands for in a file with these `imports`."""
    imports = list(imports)
    first, *rest = selector.split('.')
    path = next((item.path for item in imports if item.name == first), None)
    module, _, name = '.'.join([path, *rest] if path else [selector]).rpartition('.')
    if not path or not any(item.module == module for item in imports):
      raise errors.ConfigError(
          what='name', where=where, got=statements.shown(selector), expected='<imported module>.<constructor>',
          fix=self._suggestion(selector, imports))
    loaded = self.module(module, where)
    try:
      function = self._exported(loaded, name)
    except Exception as error:  # A package that imports lazily runs here.
      raise _import_error(selector, where, error) from error
    if function is None:
      raise errors.ConfigError(
          what='name', where=where, got=statements.shown(selector), expected=f'a constructor exported by {module}',
          fix=self._suggestion(selector, imports))
    return self._constructor(module, name, function, short=f'{module.split(".")[-1]}.{name}')

  def imports_for_flags(self, imports: Iterable[statements.Import]) -> list[statements.Import]:
    """What a binding on the command line may name: what the files import, every allowed package and the entry's module.

    Packages go by their full name and by the last part of it. A name that two files give to different modules stands
    for neither.
    """
    paths = {}
    for item in imports:
      paths.setdefault(item.name, set()).add(item.path)
    found = [item for item in imports if len(paths[item.name]) == 1]
    for package in (*self._packages, *self._entry_modules()[:1]):
      parts = package.split('.')
      for name, path in ((parts[0], parts[0]), (parts[-1], package)):
        if paths.get(name, {path}) == {path}:
          found.append(statements.Import(package, name, path, '--gin'))
    return found

  def _constructor(self, module, name, function, *, short):
    if id(function) not in self._constructors:
      self._constructors[id(function)] = Constructor(module, name, short, function, signatures.parameters(function))
    return self._constructors[id(function)]

  def _is_allowed(self, module):
    allowed = any(module == package or module.startswith(package + '.') for package in self._allow_modules)
    return allowed or module in PACKAGES

  def _is_of_entry(self, module):
    return module in self._entry_modules()

  def _entry_modules(self):
    """The entry's module and the packages around it that may re-export the entry."""
    if self.entry is None or self.entry.module == '__main__':
      return []
    parts = self.entry.module.split('.')
    return ['.'.join(parts[:count]) for count in range(len(parts), 0, -1)]

  def _exported(self, module, name):
    """The constructor `name` of `module`, or None.

    A module exports what its `__all__` lists, or without one what is public and defined in an allowed module.
    """
    listed = getattr(module, '__all__', None)
    if name.startswith('_') or (listed is not None and name not in listed):
      return None
    value = getattr(module, name, None)
    if self.entry is not None and value is self.entry.function:
      return value
    is_constructor = inspect.isclass(value) or inspect.isroutine(value)
    origin = module.__name__ if listed is not None else getattr(value, '__module__', None) or ''
    return value if is_constructor and self._is_allowed(origin) else None

  def _suggestion(self, selector, imports):
    """'did you mean', out of what the imported modules export."""
    names = [self.entry.name] if self.entry is not None else []
    for item in imports:
      if (module := sys.modules.get(item.module)) is None:
        continue
      exported = getattr(module, '__all__', None) or [name for name in vars(module) if self._exported(module, name)]
      names += [f'{item.name}{item.module[len(item.path):]}.{name}' for name in exported]
    return signatures.did_you_mean(selector, names)


def _import_error(name, where, error):
  return errors.ConfigError(
      what=f'importing {name}', where=where, got=statements.shown(f'{type(error).__name__}: {error}'))


def _check_origin(spec, name, where):
  """A module that calls itself specjax has to lie in this library, wherever sys.path would find another."""
  if name.split('.')[0] != 'specjax' or name == 'specjax':
    return
  origins = [spec.origin] if spec.origin else list(spec.submodule_search_locations or ())
  if not all(pathlib.Path(origin).resolve().is_relative_to(_LIBRARY) for origin in origins):
    raise errors.ConfigError(what=f'module {name}', where=where, got=origins[0], expected=f'a file of {_LIBRARY}')
