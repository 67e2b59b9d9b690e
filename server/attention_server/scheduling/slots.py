"""Compute slots: a fixed number of concurrent computations, and one thread for each."""

import threading
from collections import deque
from collections.abc import Callable


class Slots:
    """A fixed number of slots. Call every method but `join` with the lock held.

    A holder, any object, occupies a slot for one computation. The computation runs in one of the threads here, or
    elsewhere, such as in an event loop.

    Args:
        count: number of slots.
        clock: for predicted end times.
        lock: held by the caller of a method.

    Attributes:
        count: number of slots.
        free: number of slots without a holder.
    """

    def __init__(self, count: int, clock: Callable[[], float], lock: threading.Lock) -> None:
        self.count = self.free = count
        self._clock = clock
        self._has_task = threading.Condition(lock)
        self._ends: dict[object, float] = {}  # predicted end of each holder's computation
        self._tasks: deque[Callable[[], None]] = deque()  # each has its slot and waits for a thread
        self._is_stopped = False
        self._threads = [threading.Thread(target=self._serve, name=f"slot-{i}", daemon=True) for i in range(count)]
        for thread in self._threads:
            thread.start()

    def occupy(self, holder: object, cost: float) -> None:
        """Occupy a free slot for a predicted number of seconds."""
        self.free -= 1
        self._ends[holder] = self._clock() + cost

    def release(self, holder: object) -> None:
        """Release the slot of a holder."""
        self.free += 1
        del self._ends[holder]

    def start(self, task: Callable[[], None]) -> None:
        """Start a task in a thread; the task's slot is occupied."""
        self._tasks.append(task)
        self._has_task.notify()

    @property
    def is_idle(self) -> bool:
        """Whether every slot is free."""
        return self.free == self.count

    def busy_seconds(self) -> float:
        """Return the predicted remaining seconds of all computations, summed over the slots."""
        if not self._ends:
            return 0.0
        now = self._clock()
        return sum([max(0.0, end - now) for end in self._ends.values()])

    def stop(self) -> None:
        """Stop the threads when no task is left."""
        self._is_stopped = True
        self._has_task.notify_all()

    def join(self) -> None:
        """Wait until the stopped threads have ended."""
        for thread in self._threads:
            thread.join()

    def _serve(self) -> None:
        """Run tasks; the main function of a thread."""
        while True:
            with self._has_task:
                self._has_task.wait_for(lambda: self._tasks or self._is_stopped)
                if not self._tasks:
                    return
                task = self._tasks.popleft()
            task()
            del task  # a waiting thread keeps nothing of its last task
