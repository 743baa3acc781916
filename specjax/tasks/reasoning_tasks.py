"""GSM8K (a final number), CommonsenseQA (a letter) and LAMBADA (the last word)."""

import re

from specjax.tasks.task_records import Fields, Files, TaskRecord, text_of

_CALCULATION = re.compile(r'<<[^<>]*>>')  # GSM8K's calculator annotations are no part of the text
_LETTERS = 'ABCDE'


def _gsm8k(raw):
  answer = _CALCULATION.sub('', text_of(raw['answer'])).strip()
  if '#### ' not in answer:
    raise ValueError('no #### in the answer')
  return Fields(inputs=text_of(raw['question']).strip(), targets=answer)


def _commonsense(raw):
  question, name = raw['question'], raw.get('id')
  if isinstance(question, dict):  # as published; the other schema is the flat one of data hubs
    stem, listed = text_of(question['stem']), [(text_of(c['label']), text_of(c['text'])) for c in question['choices']]
  else:
    stem = text_of(question)
    listed = list(zip(map(text_of, raw['choices']['label']), map(text_of, raw['choices']['text']), strict=True))
  letter, choices = text_of(raw['answerKey']), dict(listed)
  if letter not in choices or not set(choices) <= set(_LETTERS):
    raise ValueError(f'answer {letter!r} among {"".join(choices)!r}')
  lines = [stem.strip(), *(f'({label}) {words}' for label, words in listed)]
  return Fields(inputs='\n'.join(lines), targets=f'({letter}) {choices[letter]}',
                id=None if name is None else text_of(name),
                check={'letter': letter, 'choices': [list(pair) for pair in listed]})


def _lambada(raw):
  passage = text_of(raw['passage'] if 'passage' in raw else raw['text']).strip()
  beginning, _, word = passage.rpartition(' ')
  if not beginning:
    raise ValueError('a passage of one word')
  return Fields(inputs=beginning, targets=word)


RECORDS = (
    TaskRecord(
        name='gsm8k', family='mathematics', summary='GSM8K: school problems, the number behind ####', parse=_gsm8k,
        template='Question: {inputs}\nAnswer:', shot='Question: {inputs}\nAnswer: {targets}', metric='gsm8k', licence='MIT',
        answer_ends=('\nQuestion:',), tfds_name='gsm8k', tfds_splits={'train': 'train', 'test': 'test'},
        files={'train': (Files(('gsm8k/train.jsonl',)),),
               'test': (Files(('gsm8k/test.jsonl',)), Files(('gsm8k/test_first_half.jsonl',)))}),
    TaskRecord(
        name='commonsense_qa', family='choice', summary='CommonsenseQA: one of five', parse=_commonsense, metric='choice',
        template='Question: {inputs}\nAnswer:', shot='Question: {inputs}\nAnswer: {targets}', licence='MIT',
        answer_ends=('\nQuestion:',),
        files={'train': (Files(('commonsenseqa/train_rand_split.jsonl',)),),
               'test': (Files(('commonsenseqa/dev_rand_split.jsonl',)),)}),
    TaskRecord(
        name='lambada', family='text', summary='LAMBADA: the last word of a passage', parse=_lambada, metric='last_word',
        template='{inputs}', shot='{inputs} {targets}', licence='CC BY 4.0', tfds_name='lambada',
        tfds_splits={'train': 'train', 'validation': 'validation', 'test': 'test'},
        files={'test': (Files(('lambada/lambada_test.jsonl',)),)}),
)
