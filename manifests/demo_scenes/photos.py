"""The photos of the demo: files inside the scikit-image and scikit-learn wheels, with instructions for each."""

from importlib.util import find_spec
from pathlib import Path

from pipeline.errors import BadImage

_FOLDERS = (("skimage", "data"), ("sklearn", "datasets/images"))

PHOTOS: dict[str, tuple[str, ...]] = {
    "astronaut.png": (
        "the white helmet with the black visor",
        "the smiling woman's face",
        "What is standing in the background to the right of the astronaut?",
        "Which country's flag hangs behind her?",
        "Pick up the helmet and hand it to the astronaut",
    ),
    "coffee.png": (
        "the small spoon on the saucer",
        "the red saucer",
        "What kind of drink has been served?",
        "What is the table made of?",
        "Take the spoon off the saucer and stir the coffee",
    ),
    "chelsea.png": (
        "the cat's nose",
        "the eye on the left",
        "What colour are the eyes of this animal?",
        "How can you tell that it is not a dog?",
    ),
    "rocket.jpg": (
        "the rocket on the launch pad",
        "the lattice tower at the right edge",
        "What is about to be launched?",
        "Which lights keep the launch site bright at night?",
    ),
    "page.png": (
        "the heading",
        "What is the title of this section?",
        "Which function is called in the line of code?",
        "Where on the page does it mention the histogram?",
    ),
    "coins.png": (
        "the coin in the top right corner",
        "the leftmost coin in the bottom row",
        "How many coins are there in the second row?",
        "Which of these coins is the biggest?",
        "Pick up the coin in the bottom right corner",
    ),
    "camera.png": (
        "the camera on the tripod",
        "the man in the dark coat",
        "What is the photographer looking through?",
        "Is there a tall building in the background?",
        "Fold up the tripod and carry it away",
    ),
    "motorcycle_left.png": (
        "the front wheel of the motorcycle",
        "the black seat",
        "What colour is the fuel tank?",
        "Is there anything to sit on besides the motorcycle?",
        "Take a cardboard box from the shelf and put it on the wooden bench",
    ),
    "text.png": (
        "the handwriting",
        "Is this text printed or written by hand?",
        "What kind of symbols are written on the paper?",
    ),
    "china.jpg": (
        "the tower with the green and yellow roofs",
        "the roof at the very top",
        "How many storeys does the building have?",
        "Is there water behind the tower?",
    ),
    "flower.jpg": (
        "the orange flower in the middle",
        "the flower that is cut off by the bottom edge",
        "What colour are the petals of the big blossom?",
        "Pick the flower in the centre and put it in a vase",
    ),
}
"""Instructions by file name."""


def read_photo(name: str) -> bytes:
    """The file's bytes from the installed wheel.

    Raises:
        BadImage: no such photo, or the installed wheel lacks it.
    """
    if name in PHOTOS:
        for package, folder in _FOLDERS:
            # Located without being imported: that would take seconds in every worker.
            spec = find_spec(package)
            file = Path(str(spec.origin)).parent / folder / name if spec else None
            if file and file.is_file():
                return file.read_bytes()
    raise BadImage(f"the demo has no photo '{name}'")
