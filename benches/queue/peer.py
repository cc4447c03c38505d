# Arguments: the part, what of multiprocessing is measured ("Queue", ...), and numbers. It prints the part's figures, one a
# line, of one turn. Workers are forked: what they are asked for does not depend on how they were started.
import glob, multiprocessing, statistics, sys, time
from time import perf_counter

context = multiprocessing.get_context("fork")
part, kind, numbers = sys.argv[1], sys.argv[2], [int(number) for number in sys.argv[3:]]


def start(work, *args):
    worker = context.Process(target=work, args=args, daemon=True)
    worker.start()
    return worker


def produce(queue, count):
    for number in range(count):
        queue.put(number)


def stream(count):
    queue = getattr(context, kind)()
    worker = start(produce, queue, count)
    total = queue.get()
    begin = perf_counter()
    for _ in range(count - 1):
        total += queue.get()
    end = perf_counter()
    assert total == count * (count - 1) // 2
    worker.join()
    return [(count - 1) / (end - begin)]


def produce_at_once(barrier, queue, count):
    barrier.wait()
    produce(queue, count)


def consume_at_once(barrier, queue, ends):
    barrier.wait()
    count = 0
    while queue.get() is not None:
        count += 1
    ends.put((count, perf_counter()))


def many(side, count):
    queue, ends, barrier = getattr(context, kind)(), context.SimpleQueue(), context.Barrier(2 * side + 1)
    producers = [start(produce_at_once, barrier, queue, count) for _ in range(side)]
    consumers = [start(consume_at_once, barrier, queue, ends) for _ in range(side)]
    barrier.wait()
    begin = perf_counter()
    for producer in producers:
        producer.join()
    for _ in consumers:
        queue.put(None)
    ended = [ends.get() for _ in consumers]
    assert sum(got for got, _ in ended) == side * count
    return [side * count / (max(end for _, end in ended) - begin)]


def ends_of_two():
    if kind == "Pipe":
        ours, theirs = context.Pipe()
        return (ours.send, ours.recv), (theirs.send, theirs.recv)
    there, back = getattr(context, kind)(), getattr(context, kind)()
    return (there.put, back.get), (back.put, there.get)


def echo(put, get, trips):
    for _ in range(trips):
        put(get())


def trip(trips, pause):
    ours, theirs = ends_of_two()
    worker, times = start(echo, *theirs, trips), []
    put, get = ours
    for number in range(trips):
        if pause:
            time.sleep(pause / 1000)
        begin = perf_counter()
        put(number)
        get()
        times.append(perf_counter() - begin)
    worker.join()
    return [statistics.median(times)]


def answer(put, get, rounds):
    for _ in range(rounds):
        message = get()
        put(message[0] if message else 0)


def hand(size, rounds):
    ours, theirs = ends_of_two()
    put, get = ours
    few = 10
    worker, whole, over = start(answer, *theirs, rounds * (2 * few + 1)), [], []
    for _ in range(rounds):
        message = b"\1" * size
        for turn in range(2 * few):
            if turn == few:
                begin = perf_counter()
            put(None)
            get()
        number = (perf_counter() - begin) / few
        begin = perf_counter()
        put(message)
        assert get() == 1
        whole.append(perf_counter() - begin)
        over.append(whole[-1] - number)
    worker.join()
    return [statistics.median(whole), statistics.median(over)]


def take_and_free(lock, count):
    for _ in range(count):
        lock.acquire()
        lock.release()


def contend(barrier, lock, count, ends):
    barrier.wait()
    take_and_free(lock, count)
    ends.put(perf_counter())


def lock(workers, count):
    lock = getattr(context, kind)()
    if workers == 1:
        begin = perf_counter()
        take_and_free(lock, count)
        return [(perf_counter() - begin) / count]
    barrier, ends = context.Barrier(workers + 1), context.SimpleQueue()
    for _ in range(workers):
        start(contend, barrier, lock, count, ends)
    barrier.wait()
    begin = perf_counter()
    last = max(ends.get() for _ in range(workers))
    return [(last - begin) / (workers * count)]


def used(pid):
    """The CPU time of all threads, in seconds, and how often they began to run."""
    fields = [open(path).read().split() for path in glob.glob(f"/proc/{pid}/task/*/schedstat")]
    return sum(int(field[0]) for field in fields) / 1e9, sum(int(field[2]) for field in fields)


def get_one(put, get):
    get()


def idle(settle, pause):
    ours, theirs = ends_of_two()
    worker = start(get_one, *theirs)
    time.sleep(settle / 1000)
    before = used(worker.pid)
    time.sleep(pause / 1000)
    after = used(worker.pid)
    ours[0](0)
    worker.join()
    return [after[0] - before[0], after[1] - before[1]]


PARTS = {"stream": stream, "many": many, "trip": trip, "hand": hand, "lock": lock, "idle": idle}
for figure in PARTS[part](*numbers):
    print(figure)
