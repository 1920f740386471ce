"""Live previews while a walk runs: the demo model has colours for them."""

import torch

from harness.graph import Graph, give


def test_the_demo_models_previews_have_the_pictures_colours(host):
    import latent_preview
    from comfy.cli_args import LatentPreviewMethod, args

    scene = Graph()
    model = scene.add("MirrorDemoModel")
    drawn = host.pack_module("demo.render").render_array(host.pack_module("demo.scene").scene(1_000_007))
    drawn = torch.from_numpy(drawn.astype("float32") / 255)[None]
    picture = scene.add(give(lambda: drawn, "IMAGE"))
    latent = scene.add("VAEEncode", pixels=picture(), vae=model(2))
    sampled = scene.add("KSampler", model=model(), positive=scene.add("CLIPTextEncode", clip=model(1), text="a cat")(),
                        negative=scene.add("CLIPTextEncode", clip=model(1), text="")(), latent_image=latent(), seed=0,
                        steps=3, cfg=2.0, sampler_name="euler", scheduler="normal", denoise=1.0)
    run = host.run_graph(scene, previews=True)
    assert len(run.named("preview")) == 3 and run.outputs[sampled.id]
    before, args.preview_method = args.preview_method, LatentPreviewMethod.Latent2RGB
    try:
        previewer = latent_preview.get_previewer(torch.device("cpu"), run.outputs[model.id][0].model.latent_format)
    finally:
        args.preview_method = before
    shown = previewer.decode_latent_to_preview_image("JPEG", run.outputs[latent.id][0]["samples"])[1]
    shown = torch.frombuffer(bytearray(shown.tobytes()), dtype=torch.uint8).reshape(16, 16, 3) / 255
    true = torch.nn.functional.avg_pool2d(drawn.movedim(-1, 1), 8)[0].movedim(0, -1)
    assert (shown - true).square().mean() < 0.15 * (true - true.mean()).square().mean()
