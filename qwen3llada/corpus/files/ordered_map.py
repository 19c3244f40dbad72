"""A function mapped over a stream by worker processes, in order and in bounded memory."""

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

#: Items submitted ahead per process: enough to keep all busy, few enough to keep memory small.
AHEAD = 3


def ordered_map(
    function: Callable[[Any, Item], Result], state: Any, items: Iterable[Item], processes: int
) -> Iterator[Result]:
    """`function(state, item)` of each item, in order. `state` is sent to each process once.

    Raises: what `function` or `items` raise; OSError if a process is killed, for example for lack of memory.
    """
    if processes == 1:
        yield from (function(state, item) for item in items)
        return
    # fork spares sending `state` and importing modules again. Safe here: the children use no library whose threads are
    # running, and tokenizers is restricted to one thread.
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


_work: tuple[Callable[[Any, Any], Any], Any]  # of a worker process, set when it starts


def _start(function: Callable[[Any, Any], Any], state: Any) -> None:
    global _work
    _work = function, state
    # Keeps the collector from inherited objects: scanning them would take time and copy their pages.
    gc.freeze()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent gets the signal as well, and ends the pool
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """Exit when the parent is gone. A worker would otherwise wait for work forever."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _call(item: Any) -> Any:
    function, state = _work
    return function(state, item)
