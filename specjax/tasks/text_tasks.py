"""Running text: a passage to go on from, and the words that really follow."""

from specjax.tasks.task_records import Fields, Files, TaskRecord, text_of

PROMPT_WORDS, TARGET_WORDS = 48, 48


def parse(raw):
  """`Fields` of {'text': passage}: the first words are the prompt, the next ones the reference."""
  words = text_of(raw['text']).split(' ')
  if len(words) <= PROMPT_WORDS:
    raise ValueError(f'a passage of {len(words)} words')
  return Fields(inputs=' '.join(words[:PROMPT_WORDS]), targets=' '.join(words[PROMPT_WORDS:]))


def record(name, path, *, summary, licence):
  """The record of a text file; `path` is below the data folder, or absolute."""
  return TaskRecord(name=name, family='text', summary=summary, parse=parse, template='{inputs}', shot='{inputs} {targets}',
                    metric=None, licence=licence, files={'test': (Files((path,), kind='txt'),)})


RECORDS = (
    record('tiny_shakespeare', 'tiny_shakespeare/tinyshakespeare.txt', summary='Shakespeare, to be continued',
           licence='public domain'),
    record('grimm', 'grimm/grimm.txt', summary="Grimm's fairy tales, to be continued", licence='public domain'),
    record('tinystories', 'tinystories_sample/tinystories_sample.txt', summary='TinyStories, to be continued',
           licence='CDLA-Sharing-1.0'),
)
