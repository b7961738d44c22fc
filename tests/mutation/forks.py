"""Runs tasks in forks of this process."""

from __future__ import annotations

import signal
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from multiprocessing import connection, get_context
from typing import TypeVar

Task = TypeVar("Task")
Result = TypeVar("Result")


def forked(
    function: Callable[[Task], Result], tasks: Iterable[Task], jobs: int, seconds: int
) -> Iterator[tuple[Task, Result | None]]:
    """Yield each task with its result, computed in a fork of its own, as they come.

    At most `jobs` run at a time, each for at most `seconds`: None is the result of one that died.
    """
    context = get_context("fork")
    waiting = deque(tasks)
    running = {}
    while waiting or running:
        while waiting and len(running) < jobs:
            task = waiting.popleft()
            result, send = context.Pipe(duplex=False)
            process = context.Process(target=_run, args=(function, task, send, seconds))
            process.start()
            send.close()
            running[result] = task, process
        for result in connection.wait(list(running)):
            task, process = running.pop(result)
            try:
                yield task, result.recv()
            except EOFError:
                yield task, None
            process.join()


def _run(
    function: Callable[[Task], Result], task: Task, send: connection.Connection, seconds: int
) -> None:
    signal.alarm(seconds)
    send.send(function(task))
