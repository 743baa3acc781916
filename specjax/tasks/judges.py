"""The metric of each task: who judges an answer, and under which name."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from specjax.metrics import answers, program_tests, quality, sandbox, text_overlap
from specjax.metrics.scores import Scores
from specjax.tasks.example import Example


class Metric(NamedTuple):
  """One way to judge.

  Attributes:
    name: () -> name and signature of the value of one text.
    score: (example, answer) -> `Scores`; the answer is cut already, any text is judged and none raises.
    runs_code: whether it runs what a model wrote.
  """

  name: Callable[[], str]
  score: Callable[[Example, str], Scores]
  runs_code: bool = False


def cut(text: str, answer_ends: Sequence[str]) -> str:
  """The text before the first of `answer_ends`, white space in front of it aside; all of it where nothing ends it."""
  if not answer_ends:
    return text  # A function's body begins with its indentation.
  text = text.lstrip()
  ends = [position for end in answer_ends if (position := text.find(end)) >= 0]
  return text[:min(ends)] if ends else text


def _references(example):
  return example.check['answers']


def _summary(primary):
  return Metric(lambda: text_overlap.rouge_name(primary),
                lambda example, text: text_overlap.summary_scores(example.targets, text, primary=primary))


def _squad(exact_name, f1_name):
  def score(example, text):
    exact = answers.squad_exact_match(_references(example), text)
    return Scores(answers.squad_f1(_references(example), text), others={exact_name: exact}, answer=text)
  return Metric(lambda: f1_name, score)


def _gsm8k(example, text):
  return Scores(answers.same_number(example.targets, text), answer=answers.final_number(text))


def _choice(example, text):
  chosen = answers.choice_letter(example.check['choices'], text)
  return Scores(float(chosen == example.check['letter']), answer=chosen)


def _last_word(example, text):
  said = answers.first_word(text)
  return Scores(float(bool(said) and said == answers.first_word(example.targets)), answer=said)


def _exact(example, text):
  return Scores(quality.exact_match(example.targets, text), answer=text)


def _mbpp(example, text):
  program = program_tests.mbpp_program(text, example.check['setup'], example.check['tests'])
  return _passes(program, answer=program_tests.written_program(text))


def _humaneval(example, text):
  check = example.check
  program = program_tests.humaneval_program(check['prompt'], text, check['test'], check['entry_point'])
  return _passes(program, answer=program_tests.function_completion(text))


def _passes(program, *, answer):
  # An answer without a word of code never passes; a process for it would cost a tenth of a second.
  is_empty = not answer.strip() or len(program.encode('utf-8', 'surrogatepass')) > sandbox.MAX_PROGRAM_BYTES
  return Scores(0.0 if is_empty else float(sandbox.run(program).passed), answer=answer)


def _isolated(name):
  return lambda: f'{name}|isolation:{sandbox.isolation()}'


METRICS = {
    'translation': Metric(text_overlap.sentence_bleu_name,
                          lambda example, text: text_overlap.translation_scores(example.targets, text)),
    'rouge2': _summary('rouge2'),
    'rougeL': _summary('rougeL'),
    'squad': _squad(answers.SQUAD_NAME, answers.SQUAD_F1_NAME),
    'squad_no_answer': _squad(answers.SQUAD2_NAME, answers.SQUAD2_F1_NAME),
    'open_question': Metric(lambda: answers.OPEN_NAME, lambda example, text: Scores(
        answers.open_exact_match(_references(example), text), answer=text)),
    'trivia': Metric(lambda: answers.TRIVIA_NAME, lambda example, text: Scores(
        answers.trivia_exact_match(_references(example), text), answer=text)),
    'gsm8k': Metric(lambda: answers.GSM8K_NAME, _gsm8k),
    'choice': Metric(lambda: answers.CHOICE_NAME, _choice),
    'last_word': Metric(lambda: answers.LAST_WORD_NAME, _last_word),
    'exact_match': Metric(lambda: 'exact_match', _exact),
    'mbpp': Metric(_isolated(program_tests.MBPP_NAME), _mbpp, runs_code=True),
    'humaneval': Metric(_isolated(program_tests.HUMANEVAL_NAME), _humaneval, runs_code=True),
}


def summary_of(key: str | None) -> str:
  """What a metric is called in lists: its names without versions, '-' for none."""
  return '-' if key is None else _SUMMARIES[key]


_SUMMARIES = {
    'translation': 'BLEU, chrF2', 'rouge2': 'ROUGE-2 (-1, -L, -Lsum)', 'rougeL': 'ROUGE-L (-1, -2, -Lsum)',
    'squad': 'F1, EM', 'squad_no_answer': 'F1, EM with no-answer', 'open_question': 'EM, any alias',
    'trivia': 'EM, any alias', 'gsm8k': 'accuracy of the number', 'choice': 'accuracy', 'last_word': 'accuracy',
    'exact_match': 'exact match', 'mbpp': 'pass@k*', 'humaneval': 'pass@k*'}
