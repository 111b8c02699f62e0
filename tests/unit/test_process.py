"""How a process of ours ends."""

import signal
import subprocess
import sys

ENDLESS = """
import os, signal, sys, threading
from dicomnode.process import stop_on_signals
stop = stop_on_signals()
held = stop._cond  # the lock that Event.wait takes on its way in
with held:
    os.kill(os.getpid(), signal.Signals(int(sys.argv[1])))
    for _ in range(10_000):
        pass
stop.wait()
"""


def test_a_signal_that_comes_while_the_event_is_locked_ends_the_process_all_the_same():
    for number in (signal.SIGTERM, signal.SIGINT):
        ended = subprocess.run([sys.executable, "-c", ENDLESS, str(int(number))], timeout=30, check=False)
        assert ended.returncode == 0


UNHEARD = """
import signal, sys, threading, time
from dicomnode.process import stop_on_signals, wait_for
stop = stop_on_signals()
other = threading.Thread(target=time.sleep, args=(60,), daemon=True)
other.start()
send = lambda: signal.pthread_kill(other.ident, signal.SIGTERM)  # the main thread's wait is not interrupted
threading.Timer(0.3, send).start()
wait_for(stop)
"""


def test_a_signal_that_does_not_interrupt_the_wait_of_the_main_thread_is_heard_all_the_same():
    ended = subprocess.run([sys.executable, "-c", UNHEARD], timeout=30, check=False)
    assert ended.returncode == 0
