"""Text that models are trained on: tasks of the catalogue and files of the user, cut into splits by document.

A name means what it means to the evaluation, and questions are put as the evaluation puts them. Which split a document
is in is the data set's own choice where it has one, and a hash of the document elsewhere. `write` leaves the splits in
a folder that the evaluation reads, so that what is asked there is what was held out here.
"""

import collections
import dataclasses
import hashlib
import json
import os
import pathlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from specjax.checkpoints import durable
from specjax.core import errors
from specjax.tasks import catalogue
from specjax.tasks import datasets
from specjax.tasks import example as example_lib
from specjax.tasks import framing as framing_lib
from specjax.tasks import packing
from specjax.tasks import text_tasks

USER_KINDS = ('jsonl', 'tsv', 'text')
# Neighbouring passages of a running text that stay in one split: the second half of a tale gives the first one away.
PASSAGES_PER_DOCUMENT = 8
# Words in a row that two documents share only if one quotes the other.
RUN_OF_WORDS = 13


class Item(NamedTuple):
  """One thing to learn.

  Attributes:
    name: for errors.
    inputs: what is asked, without its template.
    targets: the reference; '' where `inputs` is all there is.
    document: the text whose hash chooses the split.
    raw: the record as the evaluation reads it.
  """

  name: str
  inputs: str
  targets: str
  document: str
  raw: Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Corpus:
  """One task or file, in splits that have no document in common.

  Attributes:
    name: as given.
    folder: its name below a folder that `write` fills.
    family: of the task, 'local' for questions of the user and 'text' for running text.
    template: of its prompts, with {inputs}.
    splits: items by split.
    num_bad: records that could not be read.
  """

  name: str
  folder: str
  family: str
  template: str
  splits: Mapping[str, list[Item]]
  num_bad: int

  def named(self, folder: str | os.PathLike, split: str = 'test') -> str:
    """What the evaluation calls this corpus in `folder`, its --data_dir; of a user's file it is the file of a split."""
    if self.is_user_text:
      return f'text:{self.path(folder, split)}'
    return f'jsonl:{self.path(folder, split)}' if ':' in self.name else self.name

  @property
  def is_user_text(self) -> bool:
    """Whether it is the user's and read as passages."""
    return self.name.startswith('text:')

  def path(self, folder: str | os.PathLike, split: str) -> pathlib.Path:
    """Where `write` puts a split."""
    return pathlib.Path(folder) / self.folder / f'{split}.{"txt" if self.is_user_text else "jsonl"}'


def load(
    name: str, *, data_dir: str | os.PathLike | None, held_out_percent: int, input_key: str = 'inputs',
    target_key: str = 'targets',
) -> Corpus:
  """The corpus of a name: of the catalogue, `jsonl:PATH`, `tsv:PATH` or `text:PATH`.

  Args:
    data_dir: the folder of the catalogue's data sets.
    held_out_percent: documents that go to validation, and again to test, where the data set has no such split.
    input_key, target_key: fields of `jsonl:` and `tsv:`. Lines without a target are text.

  Raises:
    ConfigError: an unknown name, or its data are not there.
    DataError: a file that cannot be read or holds nothing, a split without a document.
  """
  kind, _, path = name.partition(':')
  if path and kind in USER_KINDS:
    corpus = _of_user(name, held_out_percent, input_key, target_key)
  else:
    corpus = _of_catalogue(name, data_dir, held_out_percent)
  for split in example_lib.SPLITS:
    if not corpus.splits[split]:
      raise errors.DataError(
          what=f'{split} split of {name}', got=f'{sum(map(len, corpus.splits.values()))} examples, none of them in it',
          expected='at least one document', fix='give more documents, or hold out another percentage of them')
  return corpus


def _of_catalogue(name, data_dir, held_out_percent):
  record = catalogue.lookup(name)
  if record.family == 'conversation':
    raise errors.ConfigError(what='task to train on', got=name, expected='a task with answers')
  if data_dir is None or not (sources := datasets.own_splits(record, data_dir=data_dir)):
    datasets.find(record, 'test', data_dir=data_dir)  # It says what is looked for.
  bad, found = [], {}
  for split, source in sources.items():
    records = datasets.parsed(record, source, split=split, data_dir=data_dir, errors=bad)
    found[split] = list(_items(record, records))
  return Corpus(name, record.name, record.family, record.template, _cut(found, held_out_percent), len(bad))


def _items(record, records):
  """Items of a task: news by article, questions about a text by text, running text by `PASSAGES_PER_DOCUMENT`."""
  for index, (_, raw, fields) in enumerate(records):
    if record.family == 'text':
      if index % PASSAGES_PER_DOCUMENT == 0:
        document = f'{fields.inputs} {fields.targets}'
    else:
      document = fields.inputs
      if record.family == 'reading':
        document = document.rpartition('\nQuestion: ')[0] or document
    if fields.targets:
      yield Item(raw.where, fields.inputs, fields.targets, document, raw.record)


def _of_user(name, held_out_percent, input_key, target_key):
  kind, _, path = name.partition(':')
  folder = pathlib.Path(path).name.partition('.')[0] or 'file'
  if not pathlib.Path(path).is_file():
    raise errors.DataError(what='file', where=path, got='nothing', expected='a file', fix='check the path')
  if kind == 'text':
    bad, record = [], text_tasks.record('text', str(pathlib.Path(path).absolute()), summary='', licence='')
    source = datasets.find(record, 'test', data_dir=os.sep)
    records = datasets.parsed(record, source, split='test', data_dir=os.sep, errors=bad)
    items, family, num_bad = list(_items(record, records)), 'text', len(bad)
    if not items:
      raise bad[0] if bad else errors.DataError(
          what='text', where=path, got='no words', expected=f'more than {text_tasks.PROMPT_WORDS} words',
          fix='check the path')
  else:
    loaded = datasets.user_file(path, kind=kind, input_key=input_key, target_key=target_key, count=1 << 62)
    items = [Item(f'{path}: {example.id}', example.inputs, example.targets, example.inputs, _plain(example))
             for example in loaded.examples]
    family, num_bad = 'local', len(loaded.errors)
  return Corpus(name, folder, family, '{inputs}', _cut({'test': items}, held_out_percent), num_bad)


def _plain(example):
  targets = {'targets': example.targets} if example.check['labelled'] else {}
  return {'id': example.id, 'inputs': example.inputs, **targets}


def _cut(found, held_out_percent):
  """The three splits; the first that is there gives the missing ones some of its documents."""
  donor, missing = next(iter(found)), [split for split in example_lib.SPLITS if split not in found]
  splits = {split: [] if split == donor else found.get(split, []) for split in example_lib.SPLITS}
  kept = donor if donor != 'train' else None  # A held-out donor keeps its own share, and train gets the rest.
  for item in found[donor]:
    part = _part(item.document, held_out_percent)
    splits[part if part in missing or part == kept else 'train'].append(item)
  return splits


def _part(document, held_out_percent):
  words = ' '.join(document.casefold().split()).encode('utf-8', 'surrogatepass')
  digest = hashlib.blake2b(words, digest_size=4, person=b'specjax-text').digest()
  percent = int.from_bytes(digest, 'big') * 100 >> 32
  if percent < held_out_percent:
    return 'test'
  return 'validation' if percent < 2 * held_out_percent else 'train'


def disjoint(corpora: Sequence[Corpus], *, never: Collection[str] = ()) -> tuple[list[Corpus], dict[str, int]]:
  """The corpora without what is also asked elsewhere, and how many items of each were left out.

  An item goes when it is, or shares `RUN_OF_WORDS` words in a row with, an item of a split that comes later in (train,
  validation, test) in any of the corpora, and out of train also for `never`. A shared run is certain to be seen from twice
  that length.

  Args:
    never: further texts that nothing may be learned of.
  """
  asked, kept = set(), {corpus.name: dict(corpus.splits) for corpus in corpora}
  for split in reversed(example_lib.SPLITS):
    if split == 'train':
      for text in never:
        asked |= _runs(text, step=1)
    for corpus in corpora:
      kept[corpus.name][split] = [
          item for item in corpus.splits[split] if asked.isdisjoint(_runs(_asked(corpus, item), step=RUN_OF_WORDS))]
    for corpus in corpora:
      for item in kept[corpus.name][split]:
        asked |= _runs(_asked(corpus, item), step=1)
  dropped = {
      corpus.name: sum(map(len, corpus.splits.values())) - sum(map(len, kept[corpus.name].values()))
      for corpus in corpora}
  for corpus in corpora:
    for split in example_lib.SPLITS:
      if not kept[corpus.name][split]:
        raise errors.DataError(
            what=f'{split} split of {corpus.name}', got='nothing but what is asked in another split or task',
            expected='documents of its own', fix='name each text once')
  return [dataclasses.replace(corpus, splits=kept[corpus.name]) for corpus in corpora], dropped


def _asked(corpus, item):
  """What makes two items the same; answers may be: there are few of them."""
  return f'{item.inputs} {item.targets}' if corpus.family == 'text' else item.inputs


def _runs(text, *, step):
  """Hashes of runs of words, every `step` words; of a short text its own. They are only compared, within a process."""
  words = text.casefold().split()
  starts = range(0, max(len(words) - RUN_OF_WORDS, 0) + 1, step)
  return {hash(' '.join(words[start:start + RUN_OF_WORDS])) for start in starts}


def questions(name: str, *, data_dir: str | os.PathLike | None) -> list[str]:
  """Everything that a task of the catalogue asks, in any split.

  Raises:
    ConfigError: an unknown name, or its data are not there.
  """
  record = catalogue.lookup(name)
  if data_dir is None or not (sources := datasets.own_splits(record, data_dir=data_dir)):
    datasets.find(record, 'test', data_dir=data_dir)  # It says what is looked for.
  return [
      turn for split, source in sources.items()
      for _, _, fields in datasets.parsed(record, source, split=split, data_dir=data_dir, errors=[])
      for turn in fields.check.get('turns', [fields.inputs])]


def lines(corpora: Sequence[Corpus], *, characters: int) -> list[str]:
  """Lines of the train splits as models read them, about `characters` in all: evenly fewer where there are more."""
  found = []
  for corpus in corpora:
    for item in corpus.splits['train']:
      for text in (corpus.template.replace('{inputs}', item.inputs), item.targets):
        for line in text.split('\n'):
          words = line.split(' ')
          # SentencePiece leaves out what is longer than 4,192 bytes without a word.
          found += [' '.join(words[start:start + 200]) for start in range(0, len(words), 200)]
  found = [line for line in found if line.strip()]
  share = min(characters / max(sum(map(len, found)), 1), 1.0)
  return [line for index, line in enumerate(found) if int((index + 1) * share) > int(index * share)]


def write(corpora: Sequence[Corpus], folder: str | os.PathLike) -> None:
  """Writes FOLDER/<folder of the corpus>/<split>.jsonl, or .txt, the records as the evaluation reads them.

  Raises:
    ConfigError: two corpora of one folder.
  """
  for name, count in collections.Counter(corpus.folder for corpus in corpora).items():
    if count > 1:
      raise errors.ConfigError(
          what='tasks', got=f'{name} twice', expected='different names', fix='rename one of the files')
  for corpus in corpora:
    for split, items in corpus.splits.items():
      path = corpus.path(folder, split)
      if corpus.is_user_text:
        content = '\n'.join(f'{item.raw["text"]}\n' for item in items).encode()
      else:
        content = ''.join(json.dumps(dict(item.raw), ensure_ascii=False) + '\n' for item in items).encode()
      if not path.is_file() or path.read_bytes() != content:
        path.parent.mkdir(parents=True, exist_ok=True)
        durable.replace(path, content)


class Framed(NamedTuple):
  """What items are as tokens.

  Attributes:
    pieces: in order.
    num_cut: items that were shortened to fit a row.
    num_left_out: items that do not fit a row and cannot be shortened.
  """

  pieces: list[packing.Piece]
  num_cut: int
  num_left_out: int


def framed(items: Sequence[Item], corpus: Corpus, framing: framing_lib.Plain, *, length: int) -> Framed:
  """Items of a corpus as a decoder reads them in rows of `length` tokens.

  What does not fit is shortened where that leaves a task of the same kind: running text behind, articles in front of
  their summary. Text without a question is cut into pieces, and so is running text whose beginning fills a row. Other
  items are left out.
  """
  pieces, num_cut, num_left_out = [], 0, 0
  for item in items:
    if not item.targets:
      pieces += _windows(item.name, item.inputs, framing, length)
      continue
    piece = _piece(corpus, item, item.inputs, framing)
    excess = len(piece.prompt) + len(piece.answer) - 1 - length
    if excess > 0 and corpus.family == 'text':
      num_cut += 1
      fits = excess < len(piece.answer)
      pieces += [piece._replace(answer=piece.answer[:-excess])] if fits else _windows(
          item.name, f'{item.inputs} {item.targets}', framing, length)
      continue
    if excess > 0 and corpus.family == 'summary':
      piece = _shortened(lambda inputs: _piece(corpus, item, inputs, framing), item.inputs, length)
      excess, num_cut = 0 if piece else excess, num_cut + bool(piece)
    if excess > 0:
      num_left_out += 1
    else:
      pieces.append(piece)
  return Framed(pieces, num_cut, num_left_out)


def _piece(corpus, item, inputs, framing):
  prompt = corpus.template.replace('{inputs}', inputs)
  answer, _ = framing.reference(prompt, item.targets)
  return packing.Piece(
      item.name, framing.question(prompt), [*answer, *framing.eos_ids], is_text=corpus.family == 'text')


def _windows(name, text, framing, length) -> Iterator[packing.Piece]:
  """The whole text, in as many pieces as it takes; each begins like a text, only the last one ends like one."""
  tokens = [*framing.tokenizer.encode(text), *framing.eos_ids]
  first = [framing.tokenizer.bos_id] if framing.tokenizer.bos_id >= 0 else []
  for start in range(0, len(tokens), length):
    window = [*first, *tokens[start:start + length]]
    if len(window) > 1:
      yield packing.Piece(name, window[:1], window[1:], is_text=True)


def _shortened(piece_of: Callable, inputs: str, length: int):
  """The piece of as many words from the beginning of `inputs` as fit, None where not half a dozen do."""
  words = inputs.split(' ')
  low, high = 6, len(words)  # `low` words fit, `high` do not
  fits = lambda piece: len(piece.prompt) + len(piece.answer) - 1 <= length
  if low >= high or not fits(piece_of(' '.join(words[:low]))):
    return None
  while high - low > 1:
    middle = (low + high) // 2
    low, high = (middle, high) if fits(piece_of(' '.join(words[:middle]))) else (low, middle)
  return piece_of(' '.join(words[:low]))
