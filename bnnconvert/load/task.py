"""`--task`: a name of the table, or `package.module:object`, a task of the user's own."""

from bnnconvert.errors import UsageError
from bnnconvert.load.user_code import call_factory, is_factory
from bnnconvert.tasks import TASKS, Task
from bnnconvert.values.tables import look_up


def load_task(spec: str) -> Task:
    """The task of this name, or what the user's class, function or object gives.

    Raises: UsageError.
    """
    if not is_factory(spec):
        return look_up(TASKS, spec, where="--task", what="task")()
    made = call_factory(spec)
    if not isinstance(made, Task):
        raise UsageError(f"--task {spec}: gave a {type(made).__name__}; it must be a bnnconvert.tasks.Task.")
    return made
