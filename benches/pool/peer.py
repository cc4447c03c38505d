"""The same by Python's multiprocessing, and by loky where it is installed (joblib's executor): a part and a count on the command line;
prints one figure a line."""

import sys
import time
from collections import deque
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import Pool

try:
    from loky import get_reusable_executor
except ImportError:
    get_reusable_executor = None

OUTSTANDING = 1000


def same(x):
    return x


def calls(submit, result, count):
    begin, waiting = time.perf_counter(), deque()
    for x in range(count):
        if len(waiting) == OUTSTANDING:
            result(waiting.popleft())
        waiting.append(submit(x))
    for task in waiting:
        result(task)
    return count / (time.perf_counter() - begin)


def trip(call, count, pause):
    times = []
    for x in range(count):
        time.sleep(pause)
        begin = time.perf_counter()
        call(x)
        times.append(time.perf_counter() - begin)
    return sorted(times)[len(times) // 2]


def with_loky(workers, measure):
    if get_reusable_executor is None:
        return
    executor = get_reusable_executor(max_workers=workers)
    executor.submit(same, 0).result()
    print(measure(executor))
    executor.shutdown()


def main():
    part, count = sys.argv[1], max(int(sys.argv[2]), 10)
    if part == "map":
        with Pool(2) as pool:
            pool.map(same, range(100))
            begin = time.perf_counter()
            pool.map(same, range(count))
            print(count / (time.perf_counter() - begin))
        return
    workers = 2 if part == "calls" else 1
    with Pool(workers) as pool, ProcessPoolExecutor(workers) as executor:
        pool.apply(same, (0,))
        executor.submit(same, 0).result()
        if part == "calls":
            print(calls(lambda x: pool.apply_async(same, (x,)), lambda task: task.get(), count))
            print(calls(lambda x: executor.submit(same, x), lambda task: task.result(), count))
            with_loky(workers, lambda loky: calls(lambda x: loky.submit(same, x), lambda task: task.result(), count))
            return
        pause = 0.001 if part == "rest" else 0
        print(trip(lambda x: pool.apply(same, (x,)), count, pause))
        print(trip(lambda x: executor.submit(same, x).result(), count, pause))
        with_loky(workers, lambda loky: trip(lambda x: loky.submit(same, x).result(), count, pause))


main()
