"""Whether a broker would take a message from us: the one question that MQTT 3.1.1 does not answer.

There, a forbidden publish is acknowledged like any other. In MQTT 5 the acknowledgement carries a
reason. Brokers that do not speak it, or say nothing in it, leave the question open. Nothing else
of bayesd speaks MQTT 5, and this is the only place that dials with paho itself.
"""

import asyncio
import re
import socket
import threading
from typing import Any, Literal

import paho.mqtt.client as mqtt
from paho.mqtt.enums import CallbackAPIVersion

from bayesd.bus import BrokerAddress

Answer = Literal["denied", "unheard", "taken"]
"""Not allowed; allowed, but nobody who subscribed is allowed to read it; allowed."""

NOT_AUTHORISED, NOBODY_SUBSCRIBED = 0x87, 0x10


async def may_publish(address: BrokerAddress, client_id: str, topic: str, payload: bytes,
                      timeout_s: float = 3.0) -> Answer | None:
    """Publish, and what the broker says of it; None where it cannot be known.

    The message is sent for good if it is allowed, so it must be one that changes nothing.
    """
    return await asyncio.to_thread(_publish, address, client_id, topic, payload, timeout_s)


def _publish(address: BrokerAddress, client_id: str, topic: str, payload: bytes, timeout_s: float) -> Answer | None:
    client = mqtt.Client(CallbackAPIVersion.VERSION2, client_id=client_id, protocol=mqtt.MQTTv5)
    client.connect_timeout = timeout_s
    context = address.tls_context()
    if context is not None:
        client.tls_set_context(context)
    if address.username is not None:
        client.username_pw_set(address.username, address.password())
    codes: list[int] = []
    done = threading.Event()

    def on_connect(client: mqtt.Client, data: Any, flags: Any, reason: Any, properties: Any) -> None:
        if reason.is_failure:
            done.set()
        else:
            client.publish(topic, payload, qos=1)

    def on_publish(client: mqtt.Client, data: Any, id: int, reason: Any, properties: Any) -> None:
        codes.append(reason.value)
        done.set()

    client.on_connect, client.on_publish = on_connect, on_publish
    client.on_disconnect = lambda *_: done.set()
    try:
        client.connect(address.host, address.port, keepalive=30)
        sock = client.socket()
        if isinstance(sock, socket.socket):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        client.loop_start()
        done.wait(timeout_s)
        client.disconnect()
        client.loop_stop()
    except (OSError, ValueError):
        return None
    if not codes:
        return None
    return {NOT_AUTHORISED: "denied", NOBODY_SUBSCRIBED: "unheard"}.get(codes[0], "taken")  # type: ignore[return-value]  # the three words


def numbers(text: str) -> tuple[int, ...]:
    """The first version number in a text."""
    found = re.search(r"\d+(\.\d+)+", text)
    return tuple(int(each) for each in found[0].split(".")) if found else ()
