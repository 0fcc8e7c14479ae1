"""Nothing is written or deleted through paths in requests or in the files of prompts."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import quote

from tests.serving.http.served_app import serve
from tests.serving.served_world import FREE, write_prompt, write_world


def state(place: Path) -> dict[str, tuple[int, int, bytes]]:
    """Mode, time and content of everything below a directory; links are not followed."""
    found = {}
    for path in [place, *place.rglob("*")]:
        stat = path.lstat()
        content = path.read_bytes() if path.is_file() and not path.is_symlink() else b""
        found[str(path)] = (stat.st_mode, stat.st_mtime_ns, content)
    return found


def test_paths_reach_nothing_outside_the_folder_of_prompts(tmp_path: Path) -> None:
    """Every request is refused for its path: the prompt that it points to could be served."""
    world = write_world(tmp_path / "world")
    victim = world / "victim"
    write_prompt(world, "victim", 9).rename(victim)
    hostile = {"task": FREE.model_copy(update={"name": "../../victim", "data": str(victim)})}
    write_prompt(world, "hostile", 8, base_model=str(victim), **hostile)
    (world / "prompts/link").symlink_to(victim)  # its owner may do so; requests may not use it
    (world / "prompts/loop").symlink_to("loop")
    (world / "prompts/stage").mkdir()
    (world / "prompts/stage/prompt").symlink_to(victim)
    (world / "prompts/notes.txt").write_text("not a prompt")
    before = state(tmp_path)
    made = serve(world, keys=frozenset())
    try:
        assert made.server.config.app.state.server.store.read("victim", victim)
        names = [
            "..", ".", "../victim", "../../victim", "labels/../../victim", "labels/", "notes.txt", "..\\victim", "~",
            str(victim), f"{victim}/", "labels\0", "*", "", "x" * 999,
        ]  # fmt: skip
        for name in names:
            for sent in {name.replace("\0", "%00").replace("\\", "%5c"), quote(name, safe="")}:
                assert made.request("DELETE", f"/v1/prompts/{sent}")[0] in (307, 404, 405), name
            assert made.request("POST", "/v1/unload_lora_adapter", {"lora_name": name})[0] in (400, 404), name
            assert made.request("POST", "/v1/completions", {"model": name, "prompt": "x"})[0] in (400, 404), name
            for route, key in (("prompts", ""), ("load_lora_adapter", "lora_")):
                body = {f"{key}name": name or "/", f"{key}path": "labels"}
                status, answer, _ = made.request("POST", f"/v1/{route}", body)
                if name not in ("~", "*", "notes.txt"):  # fine as names: they never become paths
                    assert (status, answer["error"]["param"]) == (400, f"{key}name"), name
                body = {f"{key}name": "new", f"{key}path": name}
                assert name == "labels/" or made.request("POST", f"/v1/{route}", body)[0] == 400, name
        for path in ("link", "link/prompt.json", "loop", "loop/..", "labels/../link", "stage", "stage/prompt"):
            assert made.request("POST", "/v1/prompts", {"name": "new", "path": path})[0] == 400, path
        for name in ("hostile", "link"):
            assert made.request("POST", "/v1/completions", {"model": name, "prompt": "say: x"})[0] == 200
            assert made.request("GET", f"/v1/models/{name}")[0] == 200
            assert made.request("DELETE", f"/v1/prompts/{name}")[0] == 204
        assert made.request("POST", "/v1/prompts", {"name": "new", "path": "labels"})[0] == 201
        assert made.request("DELETE", "/v1/prompts/new")[0] == 204
    finally:
        made.server.should_exit = True
        made.thread.join(30)
    assert state(tmp_path) == before
