"""One BLAS thread, counted callers."""

import threading

from threadpoolctl import threadpool_info, threadpool_limits

from bayesd.optimize.threads import one_blas_thread


def blas_threads() -> set[int]:
    return {pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"}


def test_one_thread_inside_and_as_before_outside() -> None:
    with threadpool_limits(2, user_api="blas"):
        with one_blas_thread():
            assert blas_threads() == {1}
        assert blas_threads() == {2}


def test_the_limit_holds_until_the_last_caller_has_left() -> None:
    inside, leave = threading.Event(), threading.Event()

    def first() -> None:
        with one_blas_thread():
            inside.set()
            leave.wait(10)

    with threadpool_limits(2, user_api="blas"):
        thread = threading.Thread(target=first)
        thread.start()
        inside.wait(10)
        with one_blas_thread():
            leave.set()
            thread.join()
            assert blas_threads() == {1}
        assert blas_threads() == {2}
