"""The sources of a configuration laid over each other, and what is refused on the way.

Refused are: a parameter nobody takes, a value of another type, an undefined macro, the same thing bound twice by a file
or by two files of which neither includes the other, and a binding without effect.
"""

import dataclasses
from typing import Any, Callable, Iterable, Mapping

from specjax.config import graph
from specjax.config import registry
from specjax.config import signatures
from specjax.config import sources
from specjax.config import statements
from specjax.core import errors


@dataclasses.dataclass(frozen=True)
class Layer:
  """The bindings of one source, and the names of the sources it may override."""

  name: str
  assignments: dict[graph.Key, graph.Assignment]
  overridable: frozenset[str]


def make_layer(source: sources.Source, resolve: Callable[[str, str], registry.Constructor]) -> Layer:
  """`source` with its selectors resolved by `resolve(selector, where)`."""
  layer = Layer(source.name, {}, source.overridable)
  for binding in source.bindings:
    def resolved(leaf, where=binding.where):
      is_macro = isinstance(leaf, statements.Macro)
      return leaf if is_macro else dataclasses.replace(leaf, selector=resolve(leaf.selector, where))

    target = resolve(binding.selector, binding.where) if binding.selector else None
    value = statements.substitute(binding.value, resolved)
    _assign(layer, graph.Key(binding.scope, target, binding.parameter), graph.Assignment(value, binding.where))
  return layer


def add_overrides(layer: Layer, entry: registry.Constructor, overrides: Mapping[str, Any]) -> None:
  """Puts flat flags, values of the entry's parameters, into the layer of the command line."""
  for name, value in overrides.items():
    statements.check_value(value, name, f'--{name}')
    _assign(layer, graph.Key('', entry, name), graph.Assignment(value, f'--{name}'))


def merge(layers: Iterable[Layer]) -> list[graph.State]:
  """The bindings that count after each layer; the last state is the configuration."""
  states, owners, merged = [], {}, {}
  for layer in layers:
    for key, assignment in layer.assignments.items():
      if key in owners and owners[key] not in layer.overridable:
        raise errors.ConfigError(
            what=f'{key} is bound by two files', where=assignment.where,
            fix=f'it is also bound at {merged[key].where}: a file overrides only what it includes')
      owners[key] = layer.name
    merged = {**merged, **layer.assignments}
    states.append(graph.State(merged))
  return states


def check_values(layers: Iterable[Layer], state: graph.State) -> None:
  """Raises ConfigError for an undefined macro, and for a value that does not fit its parameter, overridden or not.

  Args:
    state: what counts in the end; macros are read from it.
  """
  every = [item for layer in layers for item in layer.assignments.items()]
  names = [key.name for key in state.assignments if key.target is None]
  for _, assignment in every:
    for macro in graph.macros_of(assignment.value):
      if macro.name not in names:
        raise errors.ConfigError(
            what='macro', where=assignment.where, got=statements.shown(macro.name), expected='one that is defined',
            fix=signatures.did_you_mean(macro.name, names))
  macros, budget = graph.expanded_macros(state), 100 * graph.MAX_SIZE
  for key, assignment in every:
    value = statements.substitute(assignment.value, lambda leaf: macros[leaf.name][0] if graph.is_macro(leaf) else leaf)
    budget -= sum(1 for _ in statements.leaves(value))
    if budget < 0:
      raise errors.ConfigError(what='size', where=assignment.where, expected='fewer values once macros are expanded')
    expected = _expected(key, value)
    if expected:
      where = assignment.where
      if graph.is_macro(assignment.value):
        where = f'{macros[assignment.value.name][1]} (%{assignment.value.name} at {where})'
      got = f'@{value.selector.name}' if isinstance(value, statements.Reference) else value
      raise errors.ConfigError(what=str(key), where=where, got=statements.shown(got), expected=expected)


def check_used(layers: Iterable[Layer], states: Iterable[graph.State], entry: registry.Constructor) -> None:
  """Raises ConfigError for a binding that has no effect.

  A binding has effect when it hangs on the entry in the state after its own layer or after a later one: a file may
  bind for a constructor that the files around it choose, and may be overridden by them. The command line is the last
  layer, so what it binds has to count in what is run.
  """
  layers, reached = list(layers), []
  for state in states:
    nodes = state.reached(entry)
    reached.append({key for node in nodes for key in state.keys_of(node).values()})
  for number, layer in enumerate(layers):
    for key, assignment in layer.assignments.items():
      if not any(key in keys for keys in reached[number:]):
        raise _unused(key, assignment.where, layers, states[number:], entry)


def _assign(layer, key, assignment):
  if key.target is not None and key.name not in key.target.parameters:
    raise errors.ConfigError(
        what=f'parameter of {key.target.name}', where=assignment.where, got=statements.shown(key.name),
        expected='one of ' + ', '.join(key.target.parameters) if key.target.parameters else 'none',
        fix=signatures.did_you_mean(key.name, key.target.parameters))
  if key in layer.assignments:
    raise errors.ConfigError(
        what=f'{key} is bound twice', where=assignment.where,
        fix=f'it is already bound at {layer.assignments[key].where}')
  layer.assignments[key] = assignment


def _expected(key, value):
  """What would fit the parameter, when `value` does not."""
  if key.target is None or value == statements.Macro(statements.REQUIRED):
    return None
  return signatures.expectation(key.target.parameters[key.name], value)


def _unused(key, where, layers, states, entry):
  """Says why the binding has no effect, as far as can be seen."""
  values = [assignment.value for layer in layers for assignment in layer.assignments.values()]
  leaves = [leaf for value in values for leaf in statements.leaves(value)]
  references = [leaf for leaf in leaves if isinstance(leaf, statements.Reference)]
  if key.target is None:
    used = {leaf.name for leaf in leaves if graph.is_macro(leaf)}
    hint = signatures.did_you_mean(key.name, used - {key.name}) or f'use it as %{key.name} or remove it'
  elif key.scope and key.scope not in {leaf.scope for leaf in references}:
    hint = signatures.did_you_mean(key.scope, {leaf.scope for leaf in references if leaf.scope})
    hint = hint or f'no reference enters the scope: @{key.scope}/{key.target.name}()'
  elif any(key.target == node.target for state in states for node in state.reached(entry)):
    hint = 'bindings of inner scopes override it everywhere'
  else:
    hint = f'nothing that {entry.name} uses refers to {key.target.name}'
  return errors.ConfigError(what=f'{key} has no effect', where=where, fix=hint)
