"""What a configuration means: which binding counts, what the entry reaches, and what it is called with.

gin evaluates when a function is called and says nothing about a binding that is never read. Here the whole graph is
known beforehand: the library holds no `@gin.configurable`, so everything a configuration can influence hangs on the
entry by references. A binding that does not is refused.
"""

import dataclasses
import functools
from typing import Any, Iterable, Iterator, NamedTuple

from specjax.config import registry
from specjax.config import statements
from specjax.core import errors

MAX_SIZE = 10_000


class Key(NamedTuple):
  """What is bound: a parameter of a constructor in a scope, or (`target` None) a macro."""

  scope: str
  target: registry.Constructor | None
  name: str

  def __str__(self):
    scope = f'{self.scope}/' if self.scope else ''
    return f'{scope}{self.target.name}.{self.name}' if self.target else self.name


class Node(NamedTuple):
  """A constructor as called in a scope (outermost name first), or (`target` None) the macro that `scope` names."""

  scope: tuple[str, ...]
  target: registry.Constructor | None


@dataclasses.dataclass(frozen=True)
class Assignment:
  """A value whose references hold constructors, and where it was written."""

  value: Any
  where: str


class State:
  """The bindings that count at one point."""

  def __init__(self, assignments: dict[Key, Assignment]):
    self.assignments = assignments
    self._grouped: dict[tuple[str, registry.Constructor | None], dict[str, Key]] = {}
    for key in assignments:
      self._grouped.setdefault((key.scope, key.target), {})[key.name] = key

  def keys_of(self, node: Node) -> dict[str, Key]:
    """The binding that counts for each parameter of `node`: outer scopes first, inner ones over them."""
    if node.target is None:
      key = Key('', None, node.scope[0])
      return {key.name: key} if key in self.assignments else {}
    found = {}
    for length in range(len(node.scope) + 1):
      found.update(self._grouped.get(('/'.join(node.scope[:length]), node.target), {}))
    return found

  def children(self, node: Node) -> Iterator[tuple[Key, Any, Node]]:
    """Every reference and macro in the values of `node`, with the binding it stands in and the node it leads to."""
    for key in self.keys_of(node).values():
      for leaf in statements.leaves(self.assignments[key].value):
        if (child := _child(leaf, node)) is not None:
          yield key, leaf, child

  def reached(self, entry: registry.Constructor) -> list[Node]:
    """Everything that hangs on the entry, the entry first, each once."""
    found, pending = {}, [Node((), entry)]
    while pending:
      node = pending.pop()
      if node not in found:
        found[node] = None
        pending += [child for _, _, child in self.children(node)]
    return list(found)


def expanded_macros(state: State) -> dict[str, tuple[Any, str]]:
  """Each macro's value with the macros in it replaced, and where its literal was written.

  Raises:
    ConfigError: for macros that are undefined, define each other, or grow without bound.
  """
  done: dict[str, tuple[Any, int, str]] = {}

  def expand(name, where, path):
    key = Key('', None, name)
    if name in path or len(path) > statements.MAX_DEPTH:
      raise errors.ConfigError(what='macros that define each other', where=where, got=name)
    if name not in done:
      value, where = state.assignments[key].value, state.assignments[key].where
      parts = {leaf.name: expand(leaf.name, where, (*path, name)) for leaf in macros_of(value)}
      size = sum(parts[leaf.name][1] if is_macro(leaf) else 1 for leaf in statements.leaves(value))
      if size > MAX_SIZE:
        raise errors.ConfigError(what=f'size of {name}', where=where, expected=f'at most {MAX_SIZE} values')
      if is_macro(value):
        done[name] = parts[value.name]
      else:
        value = statements.substitute(value, lambda leaf: parts[leaf.name][0] if is_macro(leaf) else leaf)
        done[name] = value, size, where
    return done[name]

  macros = [key.name for key in state.assignments if key.target is None]
  return {name: (expand(name, '', ())[0], done[name][2]) for name in macros}


def is_macro(leaf: Any) -> bool:
  """Whether `leaf` stands for a macro that a file defines; `%gin.REQUIRED` does not."""
  return isinstance(leaf, statements.Macro) and leaf.name != statements.REQUIRED


def macros_of(value: Any) -> list[statements.Macro]:
  """The macros inside `value`."""
  return [leaf for leaf in statements.leaves(value) if is_macro(leaf)]


def check_callable(state: State, entry: registry.Constructor, provided: Iterable[str]) -> None:
  """Raises ConfigError when the entry cannot be called: values missing, circles, an expansion without bound.

  Args:
    provided: parameters of the entry that its caller gives.
  """
  sizes: dict[tuple[Node, bool], int] = {}

  def size(node, where, path, called):
    if node in path or len(path) > statements.MAX_DEPTH:
      raise errors.ConfigError(what='references in a circle' if node in path else 'references too deep', where=where)
    if (node, called) not in sizes:
      _check_complete(state, node, where, provided if not path else (), called)
      total = sum(1 for key in state.keys_of(node).values() for _ in statements.leaves(state.assignments[key].value))
      for key, leaf, child in state.children(node):
        is_called = isinstance(leaf, statements.Macro) or leaf.evaluated
        total += size(child, state.assignments[key].where, (*path, node), is_called)
        if total > MAX_SIZE:
          raise errors.ConfigError(what='size', where=where, expected=f'at most {MAX_SIZE} values once expanded')
      sizes[node, called] = total
    return sizes[node, called]

  size(Node((), entry), entry.name, (), True)


def arguments(state: State, node: Node) -> dict[str, Any]:
  """What the constructor of `node` is called with: its bindings, with everything they refer to built.

  Raises:
    ConfigError: when a constructor refuses what it is given; `where` is the binding.
  """
  bound = {name: state.assignments[key] for name, key in state.keys_of(node).items()}
  return {name: _built(state, assignment.value, node, assignment.where) for name, assignment in bound.items()}


def construct(state: State, node: Node, given: dict[str, Any], where: str) -> Any:
  """What the constructor of `node` returns for `given`.

  Raises:
    ConfigError: for a value it refuses, at the binding of the parameter that it names, else at `where`.
  """
  try:
    return node.target.function(**given)
  except (TypeError, ValueError) as error:
    if isinstance(error, errors.SpecjaxError) and not isinstance(error, errors.ParamError):
      raise
    what = getattr(error, 'what', None)
    key = state.keys_of(node).get(what) if isinstance(what, str) else None
    where = state.assignments[key].where if key else where
    if what is None:
      raise errors.ConfigError(what=f'{node.target.name}: {error}', where=where) from error
    what = f'{node.target.name}: {what}'
    raise errors.ConfigError(
        what=what, where=where, got=error.got, expected=error.expected, fix=error.fix) from error


def _child(leaf, node):
  """The node that a reference or macro in a value of `node` leads to; scopes follow gin's rules."""
  if is_macro(leaf):
    return Node((leaf.name,), None)
  if isinstance(leaf, statements.Reference):
    return Node(tuple(leaf.scope.split('/')) if leaf.scope else node.scope, leaf.selector)
  return None


def _check_complete(state, node, where, provided, called):
  """Every parameter without a default has a value, unless `node` is only passed on and its caller may give it."""
  bound = state.keys_of(node)
  for name, key in bound.items():
    if statements.Macro(statements.REQUIRED) in statements.leaves(state.assignments[key].value):
      full = name if node.target is None else f'{node.target.short}.{name}'
      raise errors.ConfigError(
          what=f'{full} is required', where=state.assignments[key].where, fix=f'give it: --gin.{full}=...')
  for name, parameter in node.target.parameters.items() if called and node.target is not None else ():
    if parameter.required and name not in bound and name not in provided:
      is_entry = node.target.short == node.target.name
      raise errors.ConfigError(
          what=f'{node.target.name}.{name} is required', where=where,
          fix=f'give it: --{name}=...' if is_entry else f'give it: --gin.{node.target.short}.{name}=...')


def _built(state, value, node, where):
  return statements.substitute(value, lambda leaf: _built_leaf(state, leaf, node, where))


def _built_leaf(state, leaf, node, where):
  child = _child(leaf, node)
  if child.target is None:
    assignment = state.assignments[Key('', None, leaf.name)]
    return _built(state, assignment.value, child, assignment.where)
  given, function = arguments(state, child), child.target.function
  if not leaf.evaluated:
    return functools.partial(function, **given) if given else function
  return construct(state, child, given, where)
