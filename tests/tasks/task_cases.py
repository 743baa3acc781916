"""Three records of every task, in TFDS' schema or in that of the published files, written by us."""

import json

SQUAD = [
    {'id': 'q1', 'title': 'Rivers', 'context': 'The Elbe is 1,094 km long and flows into the North Sea.',
     'question': 'Where does the Elbe end?', 'answers': {'text': ['the North Sea', 'North Sea'], 'answer_start': [39, 43]}},
    {'id': 'q2', 'title': 'Rivers', 'context': 'The Oder rises in Moravia.', 'question': 'Where does the Oder rise?',
     'answers': {'text': ['Moravia'], 'answer_start': [18]}},
    {'id': 'q3', 'title': 'Rivers', 'context': 'The Rhine passes the sea port of Basel.', 'question': 'What does the Rhine pass?',
     'answers': {'text': ['the sea port of Basel'], 'answer_start': [17]}}]

NO_ANSWER = {'id': 'q4', 'title': 'Rivers', 'context': 'The Oder rises in Moravia.', 'question': 'How deep is it?',
             'answers': {'text': [], 'answer_start': []}, 'is_impossible': True}

PAIRS = [{'en': 'The house is old and very big.', 'de': 'Das Haus ist alt und sehr groß.', 'fr': 'La maison est vieille.',
          'ro': 'Casa este veche și mare.', 'es': 'La casa es vieja y grande.'},
         {'en': 'The dog is old and very small.', 'de': 'Der Hund ist alt und sehr klein.', 'fr': 'Le chien est vieux.',
          'ro': 'Câinele este vechi.', 'es': 'El perro es viejo.'},
         {'en': 'Good morning to all of you!', 'de': 'Guten Morgen euch allen!', 'fr': 'Bonjour à tous !',
          'ro': 'Bună dimineața tuturor!', 'es': '¡Buenos días a todos!'}]

CHOICES = ('bank', 'library', 'department store', 'mall', 'new york')


def _choice(number, letter):
  return {'id': f'c{number}', 'answerKey': letter, 'question': {
      'stem': f'Where is question {number}?', 'question_concept': 'x',
      'choices': [{'label': label, 'text': text} for label, text in zip('ABCDE', CHOICES)]}}


def _mbpp(number, task_id):
  return {'task_id': task_id, 'text': f'Write a function that adds {number}.', 'code': f'def add(x):\r\n  return x + {number}',
          'test_setup_code': '', 'test_list': [f'assert add(1) == {1 + number}', f'assert add(-1) == {number - 1}'],
          'challenge_test_list': []}


def _humaneval(number):
  return {'task_id': f'Toy/{number}', 'prompt': f'def times(x):\n  """Returns {number} times x."""\n', 'entry_point': 'times',
          'canonical_solution': f'  return {number} * x\n',
          'test': f'def check(candidate):\n  assert candidate(3) == {3 * number}\n'}


TRANSLATION = ('wmt14_en_de', 'wmt14_de_en', 'wmt16_en_de', 'wmt16_de_en', 'iwslt2017_en_de', 'iwslt2017_de_en', 'flores_en_de',
               'flores_en_fr', 'flores_en_ro', 'flores_en_es', 'tatoeba_en_fr')

STORY = 'Once upon a time there lived number {} in a house by the river with a cat and a dog and a bird . '

RAW = {
    **{name: PAIRS for name in TRANSLATION},
    'xsum': [{'document': f'Long ago {n} ships came to the town.', 'summary': f'{n} ships came to town.'}
             for n in ('Three', 'Four', 'Many')],
    'cnn_dailymail': [{'article': f'{n} storms hit the coast on Monday.', 'id': n, 'publisher': 'x',
                       'highlights': f'{n} storms hit coast .\nNobody was hurt .'} for n in ('Two', 'Six', 'Ten')],
    'samsum': [{'dialogue': f'{n}: hi\nBo: hi', 'id': n, 'summary': f'{n} and Bo say hi.'} for n in ('Ann', 'Eve', 'Joe')],
    'scitldr': [{'source': [f'{n} layers are enough.', 'We prove it.'], 'paper_id': n, 'title': 'On layers',
                 'target': [f'{n} layers suffice.', 'A proof.']} for n in ('Two', 'Six', 'Ten')],
    'gsm8k': [{'question': f'What is {n} + {n}?', 'answer': f'It is <<{n}+{n}={2 * n}>>{2 * n}.\n#### {2 * n}'} for n in (2, 30, 500)],
    'commonsense_qa': [_choice(1, 'A'), _choice(2, 'C'), _choice(3, 'E')],
    'lambada': [{'passage': f'he opened the door and saw the {word}'} for word in ('garden', 'river', 'king.')],
    'mbpp': [_mbpp(n, 10 + n) for n in (1, 2, 3)],
    'humaneval': [_humaneval(n) for n in (2, 3, 4)],
    'mbpp_sanitized': [_humaneval(n) for n in (2, 3, 4)],
    'squad_v1': SQUAD, 'squad_v2': SQUAD, 'adversarial_qa': SQUAD,
    'natural_questions': [{'question': 'who wrote it', 'answer': ['Bobby Scott', 'Bob Russell']},
                          {'question': 'last moon landing', 'answer': ['December 1972']}, {'question': 'how many', 'answer': ['Nine']}],
    'web_questions': [{'url': 'w/1', 'question': 'where to fly', 'answers': ['Ngurah Rai Airport']},
                      {'url': 'w/2', 'question': 'who plays', 'answers': ['Tony Warren', 'Warren']},
                      {'url': 'w/3', 'question': 'what money', 'answers': ['Bahamian dollar']}],
    'trivia_qa': [{'question_id': f't{n}', 'question': f'Question {n}?', 'answer': {
        'value': value, 'aliases': [value, alias], 'normalized_aliases': [], 'type': 'WikipediaEntity'}}
                  for n, (value, alias) in enumerate((('Mark Twain', 'Samuel Clemens'), ('Cotswolds', 'Cotswold'), ('Nine', '9')))],
    'spec_bench': [{'question_id': 81, 'category': 'writing', 'turns': ['Write a poem.', 'Shorten it.']},
                   {'question_id': 161, 'category': 'translation', 'turns': ['Translate: ja'], 'reference': ['yes']},
                   {'question_id': 401, 'category': 'rag', 'turns': ['Who?'], 'reference': [['Bo', 'Al']]}],
    'mt_bench': [{'question_id': n, 'category': 'math', 'turns': [f'What is {n}?', 'Why?'], 'reference': ['x', 'y']} for n in (1, 2, 3)],
    **{name: [{'text': (STORY * 5).format(*[n] * 5).strip()} for n in (1, 2, 3)]
       for name in ('tiny_shakespeare', 'grimm', 'tinystories')},
}


def write(folder, name, split='test', records=None):
  """Writes records as `folder/name/split.jsonl`; returns the folder."""
  path = folder / name / f'{split}.jsonl'
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(''.join(json.dumps(record) + '\n' for record in (RAW[name] if records is None else records)))
  return folder
