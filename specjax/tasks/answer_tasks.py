"""Questions with short answers: SQuAD (from a text), NaturalQuestions-open, WebQuestions and TriviaQA (from memory)."""

import re

from specjax.metrics import answers
from specjax.tasks.task_records import Fields, Files, TaskRecord, text_of, texts_of

_END_OF_TEXT = '<|endoftext|>'
_T0_QUESTION = re.compile(r'Question: "(.*?)"\n\nContext: "(.*)"\n\nAnswer:\n\Z', re.DOTALL)


def _squad(raw):
  if 'completion' in raw:
    return _wrapped(raw)
  found = raw['answers']
  # TFDS has a dict of lists, the published files a list of dicts.
  texts = texts_of(found['text']) if isinstance(found, dict) else [text_of(answer['text']) for answer in found]
  references = list(dict.fromkeys(text for text in texts if text))
  return Fields(
      inputs=f'{text_of(raw["context"]).strip()}\nQuestion: {text_of(raw["question"]).strip()}',
      targets=references[0] if references else answers.NO_ANSWER, id=text_of(raw['id']) if 'id' in raw else None,
      check={'answers': references})


def _squad1(raw):
  fields = _squad(raw)
  if not fields.check['answers']:
    raise ValueError('no answer, which SQuAD 1.1 has not')
  return fields


def _wrapped(raw):
  found = _T0_QUESTION.fullmatch(text_of(raw['prompt']))
  if not found:
    raise ValueError('a prompt with another wording')
  answer = text_of(raw['completion']).removesuffix(_END_OF_TEXT).strip()
  return Fields(inputs=f'{found.group(2).strip()}\nQuestion: {found.group(1).strip()}', targets=answer,
                check={'answers': [answer]})


def _open(raw):
  if 'qText' in raw:  # WebQuestions as JSON arrays
    question, references, name = text_of(raw['qText']), texts_of(raw['answers']), text_of(raw['qId'])
  else:
    question = text_of(raw['question'])
    references = texts_of(raw['answers'] if 'answers' in raw else raw['answer'])
    name = text_of(raw['url']) + question if 'url' in raw else None
  return _of_references(question, references, name)


def _trivia(raw):
  question, answer = text_of(raw['question']), raw.get('answer', raw.get('golden_answers'))
  if isinstance(answer, dict):
    answer = [answer['value'], *answer['aliases']]
  name = raw.get('question_id', raw.get('id'))
  return _of_references(question, texts_of(answer), None if name is None else text_of(name))


def _of_references(question, references, name):
  references = list(dict.fromkeys(reference for reference in references if reference.strip()))
  return Fields(inputs=question.strip(), targets=references[0], id=name, check={'answers': references})


def _record(name, parse, *, metric, title, licence, tfds_name=None, tfds_splits=None, files=None, reads=False):
  return TaskRecord(
      name=name, family='reading' if reads else 'question', summary=title, parse=parse, metric=metric, licence=licence,
      template='{inputs}\nAnswer:' if reads else 'Question: {inputs}\nAnswer:',
      shot='{inputs}\nAnswer: {targets}' if reads else 'Question: {inputs}\nAnswer: {targets}', answer_ends=('\n',),
      tfds_name=tfds_name, tfds_splits=tfds_splits or {}, files=files or {})


# The references of these test sets are not public: their validation sets are what is reported everywhere.
_PUBLIC = {'train': 'train', 'test': 'validation'}

RECORDS = (
    _record('squad_v1', _squad1, metric='squad', title='SQuAD 1.1: answers from a paragraph', licence='CC BY-SA 4.0',
            tfds_name='squad/v1.1', tfds_splits=_PUBLIC, reads=True,
            files={'train': (Files(('squad/train-v1.1.json',)),), 'test': (Files(('squad/dev-v1.1.json',)),)}),
    _record('squad_v2', _squad, metric='squad_no_answer', licence='CC BY-SA 4.0', tfds_name='squad/v2.0', reads=True,
            title=f'SQuAD 2.0: answers from a paragraph, or "{answers.NO_ANSWER}"', tfds_splits=_PUBLIC,
            files={'train': (Files(('squad/train-v2.0.json',)),), 'test': (Files(('squad/dev-v2.0.json',)),)}),
    _record('adversarial_qa', _squad1, metric='squad', title='AdversarialQA: as SQuAD, asked to mislead', reads=True,
            licence='CC BY-SA 4.0', files={'test': (
                Files(('adversarial_qa_t0/adversarial_qa_dbert.jsonl', 'adversarial_qa_t0/adversarial_qa_dbidaf.jsonl')),)}),
    _record('natural_questions', _open, metric='open_question', title='NaturalQuestions-open: short answers from memory',
            licence='CC BY-SA 3.0', tfds_name='natural_questions_open', tfds_splits=_PUBLIC,
            files={'train': (Files(('nq_open/NQ-open.train.jsonl',)),), 'test': (Files(('nq_open/NQ-open.dev.jsonl',)),),
                   'validation': (Files(('nq_open/NQ-open.efficientqa.dev.1.1.jsonl',)),)}),
    _record('web_questions', _open, metric='open_question', title='WebQuestions: answers are Freebase entities',
            licence='CC BY 4.0', tfds_name='web_questions', tfds_splits={'train': 'train', 'test': 'test'},
            files={'train': (Files(('webquestions/trainmodel.json', 'webquestions/val.json', 'webquestions/devtest.json')),),
                   'test': (Files(('webquestions/test.json',)),)}),
    _record('trivia_qa', _trivia, metric='trivia', title='TriviaQA without context, any alias',
            licence='questions: their trivia sites; data Apache-2.0', tfds_name='trivia_qa/unfiltered.nocontext',
            tfds_splits=_PUBLIC, files={'test': (Files(('triviaqa_1k/triviaqa_test_1k.jsonl',)),)}),
)
