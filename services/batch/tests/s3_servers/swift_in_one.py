"""OpenStack Swift in one process: proxy (with its S3 API), account, container and object server, one replica of all.

Run by ``swift_server.py`` beside it with the Python of ``.venv/swift``, which knows nothing of InferBus:
``swift_in_one.py FOLDER PORT ACCESS_KEY SECRET PAGE [CERT KEY]``. Says ``ready`` when it serves.
Two buckets: ``files``, and ``small`` with a quota of 100,000 bytes.
"""

import eventlet

eventlet.monkey_patch()

import sys  # noqa: E402
from pathlib import Path  # noqa: E402

from eventlet import wsgi  # noqa: E402
from swift.common.ring import RingBuilder  # noqa: E402
from swift.common.swob import Request  # noqa: E402
from swift.common.utils import set_swift_dir  # noqa: E402
from swift.common.wsgi import SwiftHttpProtocol, loadapp  # noqa: E402

SMALL_BYTES = 100_000
_HASH = "[swift-hash]\nswift_hash_path_suffix = inferbus\n[storage-policy:0]\nname = one\ndefault = yes\n"
_STORE = """[DEFAULT]
swift_dir = {folder}
devices = {folder}/devices
mount_check = false
[app:main]
use = egg:swift#{name}
fallocate_reserve = 0
disable_fallocate = true
"""
_PROXY = """[DEFAULT]
swift_dir = {folder}
[pipeline:main]
pipeline = catch_errors gatekeeper s3api tempauth copy container-quotas slo proxy-server
[filter:catch_errors]
use = egg:swift#catch_errors
[filter:gatekeeper]
use = egg:swift#gatekeeper
[filter:s3api]
use = egg:swift#s3api
max_bucket_listing = {page}
[filter:tempauth]
use = egg:swift#tempauth
user_{account} = {secret} .admin
[filter:copy]
use = egg:swift#copy
[filter:container-quotas]
use = egg:swift#container_quotas
[filter:slo]
use = egg:swift#slo
allow_async_delete = false
[app:proxy-server]
use = egg:swift#proxy
account_autocreate = true
"""


def main() -> None:
    folder, port, access_key, secret, page, *tls = Path(sys.argv[1]), int(sys.argv[2]), *sys.argv[3:]
    (folder / "devices" / "one").mkdir(parents=True, exist_ok=True)
    (folder / "swift.conf").write_text(_HASH)
    set_swift_dir(str(folder))
    for name in ("account", "container", "object"):
        sock = eventlet.listen(("127.0.0.1", 0))
        _ring(name, sock.getsockname()[1]).save(str(folder / f"{name}.ring.gz"))
        _serve(folder, name, _STORE.format(folder=folder, name=name), sock)
    text = _PROXY.format(folder=folder, page=page, account=access_key.replace(":", "_"), secret=secret)
    sock = eventlet.listen(("127.0.0.1", port))
    if tls:
        sock = eventlet.wrap_ssl(sock, certfile=tls[0], keyfile=tls[1], server_side=True)
    proxy = _serve(folder, "proxy", text, sock)
    for bucket, quota in (("files", None), ("small", str(SMALL_BYTES))):
        asked = Request.blank(f"/v1/AUTH_{access_key.split(':')[0]}/{bucket}", method="PUT")
        if quota is not None:
            asked.headers["X-Container-Meta-Quota-Bytes"] = quota
        assert asked.get_response(proxy._pipeline_final_app).is_success
    print("ready", flush=True)
    while True:
        eventlet.sleep(60)


def _ring(name: str, port: int):
    builder = RingBuilder(4, 1, 0)
    builder.add_dev({"region": 1, "zone": 1, "ip": "127.0.0.1", "port": port, "device": "one", "weight": 1.0})
    builder.rebalance()
    return builder.get_ring()


def _serve(folder: Path, name: str, text: str, sock):
    config = folder / f"{name}.conf"
    config.write_text(text)
    app = loadapp(str(config), global_conf={"log_name": name})
    eventlet.spawn(
        wsgi.server, sock, app, None, protocol=SwiftHttpProtocol, capitalize_response_headers=False, log_output=False
    )
    return app


main()
