"""The configuration of a run as a gin file: what the entry reaches, with the defaults it did not bind.

gin itself reads this text, and `runtime.resolve` reads it back to the same configuration.
"""

import math
from typing import Any

from specjax.config import graph
from specjax.config import registry
from specjax.config import statements

_WIDTH = 100


def render(state: graph.State, entry: registry.Constructor, *, without: frozenset[str] = frozenset()) -> str:
  """The text, of what hangs on `entry` in `state`.

  Args:
    without: parameters of the entry that are not configuration (what its caller provides).
  """
  nodes = state.reached(entry)
  targets = {node.target: None for node in nodes if node.target is not None}
  selectors, imports = _imports(targets)
  macros = sorted(node.scope[0] for node in nodes if node.target is None)
  lines = ['from __gin__ import dynamic_registration', *imports, '']
  for name in macros:
    lines += _binding(name, state.assignments[graph.Key('', None, name)].value, selectors)
  if macros:
    lines.append('')
  constructed = sorted(
      (node for node in nodes if node.target is not None),
      key=lambda node: (node.target is not entry, selectors[node.target], node.scope))
  for node in constructed:
    lines += [*_block(state, node, selectors, without if node.target is entry else ()), '']
  return '\n'.join(lines)


def _imports(targets):
  """The selector of each target, and the import statements that give it its meaning."""
  names, statements_of = {}, {}
  for module in sorted({target.module for target in targets}):
    parent, _, name = module.rpartition('.')
    if name in names.values() or name == 'gin':
      names[module] = module.replace('.', '_')
      statements_of[module] = f'import {module} as {names[module]}'
    else:
      names[module] = name
      statements_of[module] = f'from {parent} import {name}' if parent else f'import {name}'
  return {target: f'{names[target.module]}.{target.name}' for target in targets}, list(statements_of.values())


def _block(state, node, selectors, without):
  """The bindings of one constructor in one scope, in the order of its signature."""
  scope = '/'.join(node.scope) + '/' if node.scope else ''
  head = scope + selectors[node.target]
  lines = [f'# {head}']
  bound = state.keys_of(node)
  for name, parameter in node.target.parameters.items():
    if name in bound:
      lines += _binding(f'{head}.{name}', state.assignments[bound[name]].value, selectors)
    elif name not in without and not parameter.required and _is_literal(parameter.default):
      lines += _binding(f'{head}.{name}', parameter.default, selectors)
  return lines


def _binding(name, value, selectors):
  text = _format(value, selectors)
  if len(name) + len(text) + 3 <= _WIDTH or not isinstance(value, (list, tuple, dict)) or not value:
    return [f'{name} = {text}']
  opening, closing = text[0], text[-1]
  items = [
      f'{_format(key, selectors)}: {_format(item, selectors)},' for key, item in value.items()
  ] if isinstance(value, dict) else [f'{_format(item, selectors)},' for item in value]
  return [f'{name} = {opening}', *(f'    {item}' for item in items), closing]


def _format(value, selectors):
  """`value` in gin's grammar."""
  if isinstance(value, statements.Macro):
    return f'%{value.name}'
  if isinstance(value, statements.Reference):
    scope = f'{value.scope}/' if value.scope else ''
    return f'@{scope}{selectors[value.selector]}{"()" if value.evaluated else ""}'
  if isinstance(value, dict):
    items = ', '.join(f'{_format(key, selectors)}: {_format(item, selectors)}' for key, item in value.items())
    return f'{{{items}}}'
  if isinstance(value, (list, tuple)):
    items = ', '.join(_format(item, selectors) for item in value)
    if isinstance(value, list):
      return f'[{items}]'
    return f'({items},)' if len(value) == 1 else f'({items})'
  return repr(value)


def _is_literal(value: Any) -> bool:
  """Whether `value` can be written in a gin file and read back as it is."""
  if type(value) in (list, tuple):
    return all(_is_literal(item) for item in value)
  if type(value) is dict:
    return all(_is_literal(key) and _is_literal(item) for key, item in value.items())
  if type(value) is float:
    return math.isfinite(value)
  return type(value) in (bool, int, str, type(None))
