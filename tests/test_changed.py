"""A condition whose notices cost nothing where nobody waits."""

import threading

from offbeat.runtime.changed import Changed

PATIENCE = 30.0


def test_all_who_wait_are_told_and_who_gave_up_is_not_waited_for() -> None:
    lock = threading.RLock()
    changed, told = Changed(lock), []
    value = 0

    def wait(number: int) -> None:
        with lock:
            assert changed.wait_for(lambda: value == 1, PATIENCE)
            told.append(number)

    with lock:
        assert not changed.wait(0.01)
        changed.notify_all()
    threads = [threading.Thread(target=wait, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    while True:
        with lock:
            if changed._waiting == 3:
                break
    with lock:
        changed.notify_all()  # In vain: they go on waiting.
    with lock:
        value = 1
        changed.notify_all()
    for thread in threads:
        thread.join(PATIENCE)
    assert sorted(told) == [0, 1, 2]
    assert changed._waiting == 0
