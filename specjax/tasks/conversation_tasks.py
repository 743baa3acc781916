"""Spec-Bench and MT-Bench: questions in turns, answered one after the other with the model's own answers in the context.

Neither has an automatic score: MT-Bench wants a judge, Spec-Bench compares speeds.
"""

from specjax.tasks.task_records import Fields, Files, TaskRecord, text_of, texts_of


def _turns(raw):
  turns = texts_of(raw['turns'])
  references = raw.get('reference') or ['']
  first = references[0] if references[0] is not None else ''
  return Fields(
      inputs=turns[0], targets=text_of(first[0] if isinstance(first, list) else first), id=str(raw['question_id']),
      category=text_of(raw['category']), check={'turns': turns})


RECORDS = (
    TaskRecord(
        name='spec_bench', family='conversation', parse=_turns, template='{inputs}', shot='{inputs}\n{targets}', metric=None,
        summary='Spec-Bench: 480 questions of six kinds (80 of them MT-Bench, in two turns)',
        licence='Apache-2.0; MT-Bench, WMT14 DE-EN, CNN/DM, NQ, GSM8K, DPR passages',
        files={'test': (Files(('spec_bench/question.jsonl',)),)}),
    TaskRecord(
        name='mt_bench', family='conversation', parse=_turns, template='{inputs}', shot='{inputs}\n{targets}', metric=None,
        summary='MT-Bench: 80 questions in two turns', licence='Apache-2.0',
        files={'test': (Files(('mt_bench/question.jsonl',)),)}),
)
