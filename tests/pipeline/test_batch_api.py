import pytest

from pipeline.errors import InputError, RunFailed
from tests.helpers.batch_run import KEY, Run, echo, set_up
from tests.helpers.batch_server import serve_batches


@pytest.fixture(autouse=True)
def _environment(monkeypatch):
    set_up(monkeypatch)


@pytest.mark.parametrize(("status", "named"), [(401, "OPENAI_API_KEY"), (403, "OPENAI_API_KEY"), (404, "'batch'")])
def test_an_endpoint_without_access_or_batches_ends_the_run_with_what_to_mend(tmp_path, status, named):
    with serve_batches(echo) as server:
        server.refuse = lambda method, path: status
        run = Run(server, tmp_path)
        with pytest.raises(InputError, match=named) as caught:
            run()
        assert server.calls.total() == 1
    assert str(status) in str(caught.value) and KEY not in str(caught.value)


def test_a_batch_that_is_refused_ends_the_run_with_the_reason(tmp_path):
    with serve_batches(echo) as server:
        server.refuse = lambda method, path: 400 if (method, path) == ("POST", "/v1/batches") else None
        with pytest.raises(InputError, match=r"refuses a batch.*refused as scripted.*set 'batch' to false"):
            Run(server, tmp_path)()


def test_a_batch_unknown_to_the_account_is_not_made_again(tmp_path):
    with serve_batches(echo) as server:
        run = Run(server, tmp_path)
        server.lose = lambda method, path: path == "/v1/batches/batch_0"
        with pytest.raises(RunFailed):
            Run(server, tmp_path, outage_minutes=0.001)()
        server.lose = lambda method, path: False
        server.batches.clear()
        server.files.clear()
        with pytest.raises(InputError, match="no batch batch_0; give the key of the account"):
            run()
        assert not server.batches


CALLS = ["GET /v1/files", "GET /v1/batches", "POST /v1/files", "POST /v1/batches", "GET /v1/batches/batch_0"]


@pytest.mark.parametrize("failure", [429, 503, "lost"])
@pytest.mark.parametrize("call", CALLS)
def test_a_call_that_fails_for_now_is_made_again_and_done_once(tmp_path, call, failure):
    with serve_batches(echo) as server:
        failed = []

        def fails(method, path):
            if f"{method} {path}" == call and not failed:
                failed.append(call)
                return True
            return False

        if failure == "lost":
            server.lose = fails
        else:
            server.refuse = lambda method, path: failure if fails(method, path) else None
        run = Run(server, tmp_path)
        assert run() == 5
        assert failed and len(server.batches) == 1
    assert run.whole()


@pytest.mark.parametrize("known_by", ["file", "metadata"])
def test_a_batch_is_found_again_among_those_of_others(tmp_path, known_by):
    with serve_batches(echo) as server:
        server.page = 2
        server.lose = lambda method, path: path == "/v1/batches" and bool(server.batches)
        with pytest.raises(RunFailed):
            Run(server, tmp_path, outage_minutes=0.001)()
        if known_by == "file":
            server.batches["batch_0"]["metadata"] = None
        else:
            server.files.clear()
        for k in range(1, 5):
            other = {"id": f"batch_{k}", "status": "failed", "input_file_id": f"other-{k}", "metadata": {"count": k}}
            server.batches[f"batch_{k}"] = other | {"errors": {"data": [{"code": 7}]}}
            server.files[f"other-{k}"] = {"id": f"other-{k}", "filename": f"other-{k}"}
            server.contents[f"other-{k}"] = b""
        server.lose = lambda method, path: False
        run = Run(server, tmp_path)
        assert run() == 5
        assert set(server.asked.values()) == {1} and run.whole()


def test_a_batch_is_found_again_at_a_server_that_keeps_no_metadata(tmp_path):
    with serve_batches(echo) as server:
        server.forgets = True
        server.lose = lambda method, path: method == "POST" and server.calls[f"POST {path}"] == 1
        run = Run(server, tmp_path)
        assert run() == 5
        assert len(server.batches) == 1 and run.whole()


@pytest.mark.parametrize("status", [500, 429, None])
def test_an_endpoint_that_stays_down_ends_the_run_and_the_next_goes_on(tmp_path, status):
    with serve_batches(echo) as server:
        if status:
            server.refuse = lambda method, path: status if path == "/v1/batches/batch_0" else None
        else:
            server.lose = lambda method, path: path == "/v1/batches/batch_0"
        run = Run(server, tmp_path, outage_minutes=0.005)
        with pytest.raises(RunFailed, match=r"was down for 0\.005 minutes"):
            run()
        server.refuse = server.lose = lambda method, path: None
        assert run() == 5
        assert len(server.batches) == 1


def test_an_account_without_credit_ends_the_run_at_once(tmp_path):
    with serve_batches(echo) as server:
        server.refuse = lambda method, path: 429 if method == "POST" else None
        server.code = "insufficient_quota"
        with pytest.raises(InputError, match="the account has no credit left"):
            Run(server, tmp_path)()


def test_what_is_no_json_from_something_in_between_is_waited_out(tmp_path):
    with serve_batches(echo) as server:
        handle, pages = server.handle, iter([b"<html>please log in</html>", b"{}"])
        server.handle = lambda *asked: (200, next(pages, None) or handle(*asked)[1])
        assert Run(server, tmp_path)() == 5
