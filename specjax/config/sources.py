"""The files of a configuration: where they are looked for, what they include, and in which order they count.

A file's own bindings count after those of the files it includes, a later `--gin_file` after an earlier one, and the
command line last. Nothing outside the search roots is opened: `include` cannot reach the rest of the disk.
"""

import dataclasses
import pathlib
from typing import Collection, Iterable, Sequence

from specjax.config import signatures
from specjax.config import statements
from specjax.core import errors

MAX_FILES = 100
COMMAND_LINE = '--gin'

# The configurations that come with specjax: those of the checkout, or of an installed package (see setup.py).
_PACKAGE = pathlib.Path(__file__).resolve().parents[1]
_SHIPPED = next((path for path in (_PACKAGE.parent / 'gin', _PACKAGE / 'gin_files') if path.is_dir()), None)


@dataclasses.dataclass(frozen=True)
class Source:
  """One file, or the command line.

  Attributes:
    name: the path as errors show it; '--gin' for the command line.
    imports: modules the file asks for.
    bindings: in order; never the same one twice.
    overridable: names of the sources whose bindings this one may replace.
  """

  name: str
  imports: tuple[statements.Import, ...]
  bindings: tuple[statements.Binding, ...]
  overridable: frozenset[str]

  def without(self, places: Collection[str]) -> 'Source':
    """The source with the statements left out that are written at `places`."""
    kept = lambda found: tuple(statement for statement in found if statement.where not in places)
    return dataclasses.replace(self, imports=kept(self.imports), bindings=kept(self.bindings))


def place(text: str) -> str:
  """Where errors say that a binding 'NAME=value' of the command line stands."""
  return statements.shown(f'{COMMAND_LINE}.{text.split("=")[0].strip()}')


def read(
    files: Sequence[str], bindings: Sequence[str], *, search_paths: Iterable[str], config_root: str | None,
) -> list[Source]:
  """All sources in the order in which they count.

  Args:
    files: paths of gin files, looked for as they are and then in the search roots.
    bindings: 'NAME=value' or 'module.constructor.parameter=value', each one line.
    search_paths: directories that files and includes are looked for in.
    config_root: the last of those directories; None is what specjax ships.

  Raises:
    ConfigError: for a file that is missing, too large, not text, not gin, or outside the roots; `where` is file:line.
  """
  root = config_root if config_root is not None else _SHIPPED
  roots = [pathlib.Path(path) for path in [*search_paths, *([root] if root is not None else [])]]
  for directory in roots:
    if not directory.is_dir():
      raise errors.ConfigError(what='directory', where='--gin_search_paths', got=statements.shown(str(directory)),
                               expected='one that exists')
  found: dict[pathlib.Path, Source] = {}
  for name in files:
    candidates = [pathlib.Path(name), *(directory / name for directory in roots)]
    path = _first_file(candidates)
    if path is None:
      raise errors.ConfigError(
          what='gin file', where='--gin_file', got=statements.shown(name), expected='a file that exists',
          fix=_nearest_file(name, candidates))
    if path.resolve() in found:
      raise errors.ConfigError(what='gin file', where='--gin_file', got=statements.shown(name), expected='given once')
    _read_file(path, [*roots, path.parent], found, (), frozenset(source.name for source in found.values()))
  sources = list(found.values())
  parsed = []
  for text in bindings:
    parsed.append(statements.parse_binding(text, place(text)))
  return [*sources, Source(COMMAND_LINE, (), tuple(parsed), frozenset(source.name for source in sources))]


def _read_file(path, roots, found, including, earlier):
  """Puts the sources of `path` and of what it includes into `found`; returns the names of all of them."""
  resolved = path.resolve()
  if resolved in including:
    raise errors.ConfigError(what='include', where=str(path), expected='no file that includes itself')
  if resolved in found:
    return {found[resolved].name} | found[resolved].overridable
  if len(including) > statements.MAX_DEPTH or len(found) >= MAX_FILES:
    raise errors.ConfigError(what='files', where=str(path), expected=f'at most {MAX_FILES}')
  included, imports, bindings = set(), [], []
  for statement in statements.parse(_text(path), str(path)):
    if bindings and not isinstance(statement, statements.Binding):
      raise errors.ConfigError(what='order', where=statement.where, expected='imports and includes before bindings')
    if isinstance(statement, statements.Include):
      target = _included(statement, path, roots)
      included |= _read_file(target, roots, found, (*including, resolved), earlier)
    elif isinstance(statement, statements.Import):
      if any(other.name == statement.name and other.path != statement.path for other in imports):
        raise errors.ConfigError(what='import', where=statement.where, got=statement.name, expected='a name of its own')
      imports.append(statement)
    else:
      bindings.append(statement)
  found[resolved] = Source(str(path), tuple(imports), tuple(bindings), frozenset(included | earlier))
  return included | {str(path)}


def _included(statement, including, roots):
  """The file an include names: beside the including file or in a root, and inside a root once links are followed."""
  candidates = [including.parent / statement.path, *(root / statement.path for root in roots)]
  candidates = [candidate for candidate in candidates if _is_inside(candidate, roots)]
  found = _first_file(candidates)
  if found is None:
    raise errors.ConfigError(
        what='include', where=statement.where, got=statements.shown(statement.path),
        expected='a file inside the search roots', fix=_nearest_file(statement.path, candidates))
  return found


def _is_inside(path, roots):
  try:
    return any(path.resolve().is_relative_to(root.resolve()) for root in roots)
  except (OSError, RuntimeError, ValueError):  # A loop of links, or a name the file system cannot hold.
    return False


def _first_file(candidates):
  for candidate in candidates:
    try:
      if candidate.is_file():
        return candidate
    except (OSError, ValueError):
      continue
  return None


def _nearest_file(name, candidates):
  """'did you mean', out of the directories that were looked in."""
  try:
    names = [str(pathlib.Path(name).parent / file.name) for path in candidates for file in path.parent.glob('*.gin')]
  except (OSError, ValueError):
    return None
  return signatures.did_you_mean(name, sorted(names))


def _text(path):
  try:
    with open(path, 'rb') as file:
      content = file.read(statements.MAX_BYTES + 1)
  except OSError as error:
    raise errors.ConfigError(
        what='gin file', where=str(path), got=error.strerror, expected='a readable file') from error
  if len(content) > statements.MAX_BYTES:
    raise errors.ConfigError(what='size', where=str(path), expected=f'at most {statements.MAX_BYTES} bytes')
  try:
    return content.decode('utf-8')
  except UnicodeDecodeError as error:
    line = content.count(b'\n', 0, error.start) + 1
    raise errors.ConfigError(what='encoding', where=f'{path}:{line}', expected='UTF-8') from error
