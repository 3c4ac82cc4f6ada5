from contracts.command_line import INTERRUPTED
from contracts.errors import InputError, OperationError


def test_each_kind_of_failure_has_its_own_exit_code() -> None:
    """0 is success, and 1 is Python's for an exception that is not caught."""
    assert len({0, 1, InputError.exit_code, OperationError.exit_code, INTERRUPTED}) == 5


def test_a_failed_operation_is_not_wrong_input() -> None:
    assert not issubclass(OperationError, InputError)
    assert not issubclass(InputError, OperationError)
