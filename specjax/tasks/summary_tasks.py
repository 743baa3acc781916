"""Summaries: XSum, CNN/DailyMail and SAMSum, scored by ROUGE."""

from specjax.tasks.task_records import Fields, Files, TaskRecord, text_of

# How the prompts of public instruction mixtures wrap an article: (what stands before, what stands behind).
_WRAPPINGS = (
    ('', '\n\nTL;DR:\n'), ('Summarise the article:\n\n', '\n'),
    ("Could you please generate a TLDR (Too Long Didn't Read) summary of the following news article?\n\nArticle: ", '\n'))
_END_OF_TEXT = '<|endoftext|>'


def _parse(document, summary):
  def parse(raw):
    if 'prompt' in raw and 'completion' in raw:
      return Fields(inputs=_unwrapped(text_of(raw['prompt'])),
                    targets=text_of(raw['completion']).removesuffix(_END_OF_TEXT).strip())
    return Fields(inputs=text_of(raw[document]).strip(), targets=text_of(raw[summary]).strip(),
                  id=text_of(raw['id']) if 'id' in raw else None)
  return parse


def _unwrapped(prompt):
  for before, behind in sorted(_WRAPPINGS, key=lambda wrapping: -len(wrapping[0])):
    if prompt.startswith(before) and prompt.endswith(behind):
      return prompt.removeprefix(before).removesuffix(behind).strip()
  raise ValueError('a prompt with another wording')


def _record(name, document, summary, *, noun, metric, title, licence, tfds_name, files=None):
  return TaskRecord(
      name=name, family='summary', summary=title, parse=_parse(document, summary), metric=metric, licence=licence,
      template='summarize: {inputs}',  # T5's prefix
      shot=f'{noun}: {{inputs}}\nSummary: {{targets}}', answer_ends=(f'\n\n{noun}:',), tfds_name=tfds_name,
      tfds_splits={split: split for split in ('train', 'validation', 'test')}, files=files or {})


RECORDS = (
    _record('xsum', 'document', 'summary', noun='Article', metric='rouge2', title='XSum: BBC articles in one sentence',
            licence='research use; BBC text', tfds_name='xsum', files={'test': (Files(('xsum_t0/xsum_tldr.jsonl',)),)}),
    _record('cnn_dailymail', 'article', 'highlights', noun='Article', metric='rouge2',
            title='CNN/DailyMail 3.0.0: highlights of news, one a line', licence='Apache-2.0', tfds_name='cnn_dailymail',
            files={'test': (Files(('cnn_dm_t0/cnn_dm_news_summary.jsonl',)), Files(('cnn_dm_t0/cnn_dm_tldr.jsonl',)))}),
    _record('samsum', 'dialogue', 'summary', noun='Dialogue', metric='rougeL', title='SAMSum: chats in a sentence or two',
            licence='CC BY-NC-ND 4.0', tfds_name='samsum'),
)
