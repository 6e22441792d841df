"""Expert `clipseg`: a soft map of where the phrase is, by CLIPSeg."""

from collections.abc import Sequence

import cv2
import numpy as np
import torch
from pydantic import Field
from transformers import CLIPSegForImageSegmentation, CLIPSegProcessor

from experts.base import Candidate, Placement, Scene, per_request, unique_texts
from experts.model import ModelOptions, TorchExpert, load_pretrained, load_processor


class CLIPSegOptions(ModelOptions):
    """`checkpoint` as `CIDAS/clipseg-rd64-refined`. The mask is where the map is over `threshold`; 0.3 is what the
    authors' PhraseCut results are reported at (timojl/clipseg, experiments/phrasecut.yaml)."""

    threshold: float = Field(0.3, gt=0, lt=1)


class CLIPSeg(TorchExpert):
    """Lüddecke and Ecker, "Image Segmentation Using Text and Image Prompts", CVPR 2022: a small decoder on CLIP's image
    activations, modulated by the phrase's text embedding, gives each pixel's probability to be what the phrase says.

    The score is the mean probability inside the mask, which is the precision that the model expects of it: it is on
    the same scale in every image, from the threshold to 1.
    """

    summary = "what a phrase says, as a soft map: CLIPSeg, a decoder on CLIP's image and text encoders"
    limits = "the map is 352 pixels wide and high, so outlines are coarse; one map per phrase, not one per object"
    needs = ("torch", "transformers")
    Options = CLIPSegOptions
    options: CLIPSegOptions

    def __init__(self, options: CLIPSegOptions, placement: Placement | None = None) -> None:
        super().__init__(options, placement)
        self.model = load_pretrained(CLIPSegForImageSegmentation, options, self.torch_device)
        self.processor = load_processor(CLIPSegProcessor, options)

    def find(self, scenes: Sequence[Scene]) -> list[list[list[Candidate]]]:
        texts = [unique_texts(scene.requests, "phrases") for scene in scenes]
        asked = [k for k in range(len(scenes)) if texts[k]]
        encoded = dict(zip(asked, self.batches.map(self._encode, [scenes[k].image for k in asked]), strict=True))
        phrases = list(dict.fromkeys(phrase for of_image in texts for phrase in of_image))
        embedded = dict(zip(phrases, self.batches.map(self._embed, phrases), strict=True))
        pairs = [(k, phrase) for k in asked for phrase in texts[k]]
        maps = self.batches.map(self._decode, [(encoded[k], embedded[phrase]) for k, phrase in pairs])
        found: list[dict[str, list[Candidate]]] = [{} for _ in scenes]
        for (k, phrase), heatmap in zip(pairs, maps, strict=True):
            found[k][phrase] = self._candidates(heatmap, phrase, scenes[k].image.shape)
        return [per_request(scene.requests, "phrases", of_image) for scene, of_image in zip(scenes, found, strict=True)]

    def _encode(self, images: list[np.ndarray]) -> list[torch.Tensor]:
        """Each image's activations (layers, patches + 1, width) in the layers that the decoder reads."""
        # Told apart from channels first by the processor's guess, an image three pixels high would be mistaken.
        inputs = self.processor.image_processor(images, input_data_format="channels_last", return_tensors="pt")
        # The library interpolates the position embeddings, of 224 pixels, to the processor's 352.
        vision = self.model.clip.get_image_features(
            inputs.pixel_values.to(self.torch_device, self.model.dtype), output_hidden_states=True
        )
        activations = [vision.hidden_states[layer + 1] for layer in self.model.extract_layers]
        return list(torch.stack(activations, dim=1))

    def _embed(self, phrases: list[str]) -> list[torch.Tensor]:
        longest = self.model.config.text_config.max_position_embeddings
        inputs = self.processor.tokenizer(
            phrases, padding=True, truncation=True, max_length=longest, return_tensors="pt"
        )
        return list(self.model.clip.get_text_features(**inputs.to(self.torch_device)).pooler_output)

    def _decode(self, pairs: list[tuple[torch.Tensor, torch.Tensor]]) -> list[np.ndarray]:
        """Probabilities, each float32 (side, side), of activations and text embeddings."""
        activations, embeddings = (torch.stack(of_pairs) for of_pairs in zip(*pairs, strict=True))
        logits = self.model.decoder(activations.unbind(1), embeddings).logits
        return list(logits.float().sigmoid().cpu().numpy())

    def _candidates(self, probabilities: np.ndarray, phrase: str, shape: tuple[int, ...]) -> list[Candidate]:
        # As in the authors' metrics.py, it is the probabilities that are resized and not the logits.
        resized = cv2.resize(probabilities, shape[1::-1], interpolation=cv2.INTER_LINEAR)
        heatmap = np.clip(resized, 0, 1)
        mask = heatmap > self.options.threshold
        return [Candidate(mask, float(heatmap[mask].mean()), phrase, heatmap)] if mask.any() else []
