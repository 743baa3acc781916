"""Every task on real data by name; each family has a file of its own."""

from specjax.core.errors import ConfigError
from specjax.tasks import (
    answer_tasks, conversation_tasks, program_tasks, reasoning_tasks, summary_tasks, text_tasks, translation_tasks)
from specjax.tasks.task_records import TaskRecord

_FAMILIES = (translation_tasks, summary_tasks, reasoning_tasks, program_tasks, answer_tasks, conversation_tasks, text_tasks)

RECORDS: dict[str, TaskRecord] = {record.name: record for family in _FAMILIES for record in family.RECORDS}


def lookup(name: str) -> TaskRecord:
  """The record of a name.

  Raises:
    ConfigError: there is none.
  """
  if name not in RECORDS:
    raise ConfigError(what=f'unknown task {name!r}', where='tasks', expected=f'one of {", ".join(RECORDS)}')
  return RECORDS[name]
