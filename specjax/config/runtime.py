"""gin files and flags, turned into the call of one function.

The files are plain gin, with dynamic registration; `gin.parse_config` reads them too and means the same. What differs
is what happens around: gin's parser is used and gin's global state is not, so configurations are values, and everything
is checked before anything is imported, and again before anything is called.
"""

import dataclasses
from typing import Any, Callable, Collection, Iterable, Mapping, Sequence

from specjax.config import graph
from specjax.config import layers as layering
from specjax.config import operative
from specjax.config import registry
from specjax.config import signatures
from specjax.config import sources
from specjax.core import errors


@dataclasses.dataclass(frozen=True)
class Config:
  """A configuration whose every name and type is checked; `resolve` binds one to what it configures.

  Attributes:
    layers: the bindings of each source, in the order in which they count; the command line is the last.
    states: what counts after each layer.
    entry: the function or class that is configured, if any.
  """

  layers: tuple[layering.Layer, ...]
  states: tuple[graph.State, ...]
  entry: registry.Constructor | None


@dataclasses.dataclass(frozen=True)
class Run:
  """An entry and everything it is called with. Nothing has been constructed yet."""

  entry: registry.Constructor
  state: graph.State
  provided: frozenset[str]

  def arguments(self) -> dict[str, Any]:
    """What the entry is called with: bindings, with references replaced by what they construct, and defaults.

    Raises:
      ConfigError: when a constructor refuses its parameters; `where` is the binding.
    """
    bound = graph.arguments(self.state, graph.Node((), self.entry))
    defaults = {
        name: parameter.default for name, parameter in self.entry.parameters.items()
        if name not in self.provided and not parameter.required and parameter.default is not signatures.FACTORY}
    return {**defaults, **bound}

  def call(self, **provided: Any) -> Any:
    """Calls the entry; `provided` are the parameters that `resolve` was told the caller gives.

    An entry that is a class is a constructor like the others: what it refuses is a `ConfigError` at the binding.
    """
    if set(provided) != self.provided:
      raise TypeError(f'{self.entry.name} was resolved for {sorted(self.provided)}, called with {sorted(provided)}')
    given = {**self.arguments(), **provided}
    if isinstance(self.entry.function, type):
      return graph.construct(self.state, graph.Node((), self.entry), given, self.entry.name)
    return self.entry.function(**given)

  def operative(self) -> str:
    """The gin text of this run, to be written beside its results; it reads back to the same run."""
    return operative.render(self.state, self.entry, without=self.provided)


def load(
    files: Sequence[str] = (), bindings: Sequence[str] = (), *, search_paths: Iterable[str] = (),
    allow_modules: Iterable[str] = (), config_root: str | None = None, entry: Callable[..., Any] | None = None,
    overrides: Mapping[str, Any] | None = None, without: Collection[str] = (),
) -> Config:
  """Reads and checks a configuration without calling anything in it.

  Args:
    files: gin files; a later one overrides an earlier one, and each what it includes.
    bindings: 'NAME=value' or 'module.constructor.parameter=value'; they override the files.
    search_paths: directories for files and includes.
    allow_modules: packages of the user's own whose constructors the configuration may use.
    config_root: the last directory that is searched; None is what specjax ships.
    entry: what is configured, of an importable module: files bind it as `module.entry.parameter`, `bindings` may leave
      the module out.
    overrides: values of the entry's parameters, from flat flags; they count like bindings.
    without: places, as errors name them (`where`), whose statements and flags are left out.

  Raises:
    ConfigError: for everything that is wrong with the texts; nothing has been imported if a name is not allowed.
  """
  names = registry.Registry(entry=entry, allow_modules=allow_modules)
  bindings = [text for text in bindings if sources.place(text) not in without]
  found = [source.without(without) for source in sources.read(
      files, bindings, search_paths=search_paths, config_root=config_root)]
  overrides = {name: value for name, value in (overrides or {}).items() if f'--{name}' not in without}
  for source in found:
    for statement in source.imports:
      names.check_import(statement)
  *file_sources, flags = found
  layers = [_layer(source, source.imports, names) for source in file_sources]
  every_import = [statement for source in file_sources for statement in source.imports]
  layers.append(_layer(flags, names.imports_for_flags(every_import), names))
  if overrides:
    layering.add_overrides(layers[-1], names.entry, overrides)
  states = layering.merge(layers)
  layering.check_values(layers, states[-1])
  return Config(tuple(layers), tuple(states), names.entry)


def resolve(
    *, entry: Callable[..., Any], files: Sequence[str] = (), bindings: Sequence[str] = (),
    overrides: Mapping[str, Any] | None = None, search_paths: Iterable[str] = (), allow_modules: Iterable[str] = (),
    config_root: str | None = None, provided: Iterable[str] = (), without: Collection[str] = (),
) -> Run:
  """The run of `entry` that files, bindings and flags describe; see `load` for them.

  Args:
    entry: the function or class that is called.
    provided: parameters that the caller gives to `Run.call` itself; a configuration cannot bind them.

  Raises:
    ConfigError: as `load`; and for a binding without effect, a value that is missing, references in a circle.
  """
  config = load(
      files, bindings, search_paths=search_paths, allow_modules=allow_modules, config_root=config_root, entry=entry,
      overrides=overrides, without=without)
  state, provided = config.states[-1], frozenset(provided)
  for key, assignment in state.assignments.items():
    if key.target is config.entry and key.name in provided:
      raise errors.ConfigError(what=f'{key} is not configuration', where=assignment.where, fix='remove the binding')
  layering.check_used(config.layers, config.states, config.entry)
  graph.check_callable(state, config.entry, provided)
  return Run(config.entry, state, provided)


def _layer(source, imports, names):
  for statement in source.imports:
    names.module(statement.module, statement.where)

  def resolve_name(selector, where):
    if source.name == sources.COMMAND_LINE and names.entry is not None and selector == names.entry.name:
      return names.entry
    return names.resolve(selector, imports, where)

  return layering.make_layer(source, resolve_name)
