"""Summaries: XSum, CNN/DailyMail, SAMSum and SciTLDR, scored by ROUGE."""

from specjax.tasks.task_records import Fields, Files, TaskRecord, text_of, texts_of

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


def _scitldr(raw):
  """Sentences of an abstract; of several summaries the authors' comes first."""
  return Fields(inputs=' '.join(texts_of(raw['source'])).strip(), targets=texts_of(raw['target'])[0].strip(),
                id=text_of(raw['paper_id']))


def _record(name, parse, *, noun, metric, title, licence, tfds_name=None, files=None):
  return TaskRecord(
      name=name, family='summary', summary=title, parse=parse, metric=metric, licence=licence,
      template='summarize: {inputs}',  # T5's prefix
      shot=f'{noun}: {{inputs}}\nSummary: {{targets}}', answer_ends=(f'\n\n{noun}:',), tfds_name=tfds_name,
      tfds_splits={split: split for split in ('train', 'validation', 'test')} if tfds_name else {}, files=files or {})


RECORDS = (
    _record('xsum', _parse('document', 'summary'), noun='Article', metric='rouge2', title='XSum: BBC articles in one sentence',
            licence='research use; BBC text', tfds_name='xsum', files={'test': (Files(('xsum_t0/xsum_tldr.jsonl',)),)}),
    _record('cnn_dailymail', _parse('article', 'highlights'), noun='Article', metric='rouge2',
            title='CNN/DailyMail 3.0.0: highlights of news, one a line', licence='Apache-2.0', tfds_name='cnn_dailymail',
            files={'test': (Files(('cnn_dm_t0/cnn_dm_news_summary.jsonl',)), Files(('cnn_dm_t0/cnn_dm_tldr.jsonl',)))}),
    _record('samsum', _parse('dialogue', 'summary'), noun='Dialogue', metric='rougeL', tfds_name='samsum',
            title='SAMSum: chats in a sentence or two', licence='CC BY-NC-ND 4.0'),
    _record('scitldr', _scitldr, noun='Abstract', metric='rougeL', title='SciTLDR: abstracts of papers in a sentence',
            licence='Apache-2.0',
            files={split: (Files((f'scitldr/{file}.jsonl',)),)
                   for split, file in (('train', 'train'), ('validation', 'dev'), ('test', 'test'))}),
)
