"""Programs: MBPP and HumanEval. Nothing is scored unless the user allows the execution of code."""

from specjax.tasks.task_records import Fields, Files, TaskRecord, text_of, texts_of

# Austin et al. 2021: which of the 974 problems are for what.
_MBPP_SPLITS = {'shots': range(1, 11), 'test': range(11, 511), 'validation': range(511, 601), 'train': range(601, 975)}


def _mbpp(raw):
  tests = texts_of(raw['test_list'])
  setup = text_of(raw['test_setup_code']) if 'test_setup_code' in raw else '\n'.join(texts_of(raw.get('test_imports', ())))
  problem = text_of(raw['text'] if 'text' in raw else raw['prompt']).strip()
  listed = '\n'.join(tests)
  return Fields(
      inputs=f'{problem} Your code should pass these tests:\n\n{listed}',
      targets=text_of(raw['code']).replace('\r\n', '\n').rstrip(), id=str(int(raw['task_id'])),
      check={'tests': tests, 'setup': setup})


def _indented_as(prompt, body):
  """A function's body with the indentation of its docstring; MBPP's solutions have two spaces or a tab under four."""
  first = lambda text, lines: next((line for line in lines(text.splitlines()) if line.strip()), '')
  margin = lambda line: line[:len(line) - len(line.lstrip())]
  wanted, found = margin(first(prompt, reversed)), margin(first(body, iter))
  if wanted == found or not found:
    return body
  return ''.join(wanted + line.removeprefix(found) if line.startswith(found) else line for line in body.splitlines(True))


def _humaneval(raw):
  return Fields(
      inputs=text_of(raw['prompt']), targets=_indented_as(text_of(raw['prompt']), text_of(raw['canonical_solution'])),
      id=text_of(raw['task_id']), check={'prompt': text_of(raw['prompt']), 'test': text_of(raw['test']), 'entry_point': text_of(raw['entry_point'])})


def _mbpp_belongs(raw, split):
  return int(raw['task_id']) in _MBPP_SPLITS[split]


_MBPP_FILES = (Files(('mbpp/mbpp.jsonl',)),)
_INSTRUCTION = 'You are an expert Python programmer, and here is your task: {inputs}\n[BEGIN]\n'

RECORDS = (
    TaskRecord(
        name='mbpp', family='program', summary='MBPP: short Python functions, judged by three assertions', parse=_mbpp,
        template=_INSTRUCTION, shot=_INSTRUCTION + '{targets}\n[DONE]', metric='mbpp', licence='CC BY 4.0',
        files={split: _MBPP_FILES for split in ('train', 'validation', 'test', 'shots')}, belongs=_mbpp_belongs,
        answer_ends=('[DONE]',)),
    TaskRecord(
        name='humaneval', family='program', summary='HumanEval: complete a Python function', parse=_humaneval,
        template='{inputs}', shot='{inputs}{targets}', metric='humaneval', licence='MIT',
        files={'test': (Files(('humaneval/HumanEval.jsonl',)), Files(('humaneval/HumanEval.jsonl.gz',)))}),
    TaskRecord(
        name='mbpp_sanitized', family='program', parse=_humaneval, template='{inputs}', shot='{inputs}{targets}',
        summary='MBPP sanitized as function completion, in the form of HumanEval', metric='humaneval', licence='CC BY 4.0',
        files={'test': (Files(('mbpp_sanitized/mbpp_sanitized_for_code_generation.jsonl',)),)}),
)
