"""A function over a stream in worker processes: in order, in bounded memory."""

import gc
import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

#: Items handed out ahead for each process: enough that none waits, few enough that memory stays small.
AHEAD = 3


def ordered_map(
    function: Callable[[Any, Item], Result], state: Any, items: Iterable[Item], processes: int
) -> Iterator[Result]:
    """`function(state, item)` of each item, in their order. `state` goes to each process once.

    Raises: what `function` or `items` raise; OSError if a process is killed (by the system, for want of memory, say).
    """
    if processes == 1:
        yield from (function(state, item) for item in items)
        return
    # With fork, `state` and what is imported need not be sent or imported again. The children use no library that has
    # threads running here: tokenizers is told to stay in one thread.
    method = "fork" if "fork" in multiprocessing.get_all_start_methods() else "spawn"
    context = multiprocessing.get_context(method)
    pool = ProcessPoolExecutor(processes, mp_context=context, initializer=_start, initargs=(function, state))
    pending: deque[Any] = deque()
    try:
        for item in items:
            pending.append(pool.submit(_call, item))
            if len(pending) > AHEAD * processes:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    except BrokenProcessPool as error:
        raise OSError(f"one of {processes} worker processes was killed; memory may have run out") from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


_work: tuple[Callable[[Any, Any], Any], Any]  # of a worker process: set once, when it starts


def _start(function: Callable[[Any, Any], Any], state: Any) -> None:
    global _work
    _work = function, state
    # What was inherited is not looked through for garbage, which would take time and copy its pages.
    gc.freeze()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent is told too, and ends the pool
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A worker whose parent was killed would wait for work for ever."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _call(item: Any) -> Any:
    function, state = _work
    return function(state, item)
