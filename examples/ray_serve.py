"""The governed network as a Ray Serve application (extra `ray`): images by HTTP, a governor in each replica.

    serve run examples.ray_serve:app profile=profile.json target_ms=60 replicas=2 flags="--weights network.pth"
    curl --data-binary @picture.jpg http://localhost:8000

200: class, chance, sub-network; 400: no image; 413: too large; 503: the deadline cannot be met. What a replica had
begun when it died, Ray lets fail: the door sends it again, for classifying twice does no harm.
"""

import asyncio
import io
import time
from pathlib import Path

import torch
from PIL import Image
from ray import serve
from ray.exceptions import RayError
from starlette.requests import Request
from starlette.responses import JSONResponse

from deploy.governor import Governor, Option
from deploy.live import Server, warmed
from deploy.measure import load
from deploy.profile import Profile
from presets import DECODE_ERRORS, eval_transform
from utils.evaluate.accuracy import running


@serve.deployment(max_ongoing_requests=1000, health_check_period_s=1)  # of Ray's 5 a governor could choose little
class Governed:
    def __init__(self, profile: Profile, flags: list[str]) -> None:
        Image.MAX_IMAGE_PIXELS = 16_000_000  # PIL refuses twice as many
        self.model, args, machine, self.on_device, self.names = load(flags, profile.about["threads"])
        self.transform = eval_transform(args.val_resize_size, args.val_crop_size, args.interpolation)
        inside, options = lambda: running(self.model, machine.autocast), profile.options()
        thread = warmed(self.run, options, (self.transform(Image.new("RGB", (64, 64))), None), inside)
        self.server = Server(Governor(options), self.run, lambda to, found: to[1](found), inside=inside, thread=thread)

    async def __call__(self, body: bytes, seconds: float) -> tuple[dict, int]:
        deadline, loop, answers = time.monotonic() + seconds, asyncio.get_running_loop(), asyncio.Queue()
        try:
            image = Image.open(io.BytesIO(body), formats=("JPEG", "PNG", "WEBP"))  # its head
            pixels = await asyncio.to_thread(lambda: self.transform(image.convert("RGB")))
        except DECODE_ERRORS:
            return {"error": "the body is no JPEG, PNG or WebP image, or one of more than 32 megapixels"}, 400
        self.server.submit((pixels, lambda found: loop.call_soon_threadsafe(answers.put_nowait, found)), deadline)
        return await answers.get() or ({"error": "the deadline cannot be met"}, 503)

    def run(self, option: Option, requests: list[tuple]) -> list[tuple[dict, int]]:
        images = self.on_device.to_float(torch.stack([pixels for pixels, _ in requests]).to(self.on_device.device))
        chances, best = self.model(images, self.model.parse(option.subnet)).softmax(1).max(1)
        name, pairs = option.subnet, zip(chances.tolist(), best.tolist(), strict=True)
        return [({"class": self.names[n] if self.names else n, "chance": c, "subnet": name}, 200) for c, n in pairs]

    def check_health(self) -> None:
        self.server.check()  # where the network failed: the replica is replaced, and its requests are sent elsewhere


@serve.deployment(max_ongoing_requests=1000, ray_actor_options={"num_cpus": 0})
class Door:
    def __init__(self, governed: serve.handle.DeploymentHandle, seconds: float) -> None:
        self.governed, self.seconds = governed, seconds

    async def __call__(self, request: Request) -> JSONResponse:
        deadline, body = time.monotonic() + self.seconds, b""
        async for chunk in request.stream():
            if len(body := body + chunk) > 8_000_000:
                return JSONResponse({"error": "the body has more than 8 MB"}, 413)
        while True:  # when the time is over, a replica refuses
            try:
                return JSONResponse(*await self.governed.remote(body, deadline - time.monotonic()))
            except RayError:  # the replica died, or its network failed
                await asyncio.sleep(0.01)


def app(given: dict[str, str]) -> serve.Application:
    options = {"num_replicas": int(given["replicas"]), "ray_actor_options": {"num_gpus": float(given.get("gpus", 0))}}
    governed = Governed.options(**options).bind(Profile.read(Path(given["profile"])), given["flags"].split())
    return Door.bind(governed, float(given["target_ms"]) / 1000)
