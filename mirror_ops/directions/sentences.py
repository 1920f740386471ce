"""A bank of sentence frames, so that a direction can be made from two words.

Each frame is completed with the source and with the target, and nothing else differs between the two. `{a}` becomes
"a" or "an". Frames of THINGS take a noun ("cat", "oil painting"), frames of QUALITIES a word or phrase that
describes a thing ("striped", "wooden").
"""

THINGS = tuple(
    """
{a} {word}
the {word}
one {word}
a photo of {a} {word}
a picture of {a} {word}
an image of {a} {word}
a photograph of the {word}
a close-up of {a} {word}
a close-up photo of the {word}
a portrait of {a} {word}
a snapshot of {a} {word}
a drawing of {a} {word}
a cartoon of {a} {word}
a painting of {a} {word}
a sketch of {a} {word}
an illustration of {a} {word}
a small picture of {a} {word}
a large picture of {a} {word}
a bright photo of {a} {word}
a dark photo of {a} {word}
a sharp photo of {a} {word}
a blurry photo of {a} {word}
a black and white photo of {a} {word}
a colourful picture of {a} {word}
a simple picture of {a} {word}
a good photo of {a} {word}
a cropped photo of the {word}
a studio photo of {a} {word}
a professional photo of {a} {word}
an old photo of {a} {word}
a view of {a} {word}
a side view of {a} {word}
a front view of {a} {word}
{a} {word} on a plain background
{a} {word} on a white background
{a} {word} on a blue background
{a} {word} in front of a wall
{a} {word} outdoors
{a} {word} indoors
{a} {word} in the garden
{a} {word} on the grass
{a} {word} on a table
{a} {word} in the snow
{a} {word} by a window
{a} {word} in the sun
{a} {word} in the morning light
{a} {word} at night
{a} {word} near the water
{a} {word} in the city
{a} {word} in the centre of the picture
there is {a} {word} here
this is {a} {word}
we can see {a} {word}
someone took a picture of {a} {word}
everybody looks at the {word}
the {word} fills the frame
a single {word} and nothing else
my {word}
your {word}
a nice {word}
a big {word}
a little {word}
a young {word}
an old {word}
a beautiful {word}
""".strip().splitlines()
)

QUALITIES = tuple(
    """
{a} {word} thing
{a} {word} object
{a} {word} animal
{a} {word} cat
{a} {word} dog
{a} {word} bird
{a} {word} horse
{a} {word} fish
{a} {word} person
{a} {word} face
{a} {word} house
{a} {word} building
{a} {word} room
{a} {word} door
{a} {word} wall
{a} {word} chair
{a} {word} table
{a} {word} bowl
{a} {word} cup
{a} {word} box
{a} {word} bag
{a} {word} hat
{a} {word} shirt
{a} {word} dress
{a} {word} coat
{a} {word} shoe
{a} {word} toy
{a} {word} ball
{a} {word} car
{a} {word} boat
{a} {word} bridge
{a} {word} road
{a} {word} garden
{a} {word} flower
{a} {word} tree
{a} {word} leaf
{a} {word} fruit
{a} {word} cake
{a} {word} stone
{a} {word} field
{a} {word} mountain
{a} {word} river
{a} {word} sky
{a} {word} background
{a} {word} pattern
{a} {word} surface
{a} {word} scene
{a} {word} picture
{a} {word} painting
a photo of {a} {word} animal
a photo of {a} {word} object
a photo of {a} {word} house
a photo of {a} {word} room
a picture of {a} {word} landscape
a picture of {a} {word} street
a picture of {a} {word} portrait
a close-up of {a} {word} surface
an image that looks {word}
everything in the picture is {word}
the whole picture is {word}
something {word}
it is {word}
the animal is {word}
the house is {word}
""".strip().splitlines()
)


def article(word: str) -> str:
    """The indefinite article before `word`, by its first letter."""
    return "an" if word[:1].lower() in "aeiou" else "a"


def fill(frames: tuple[str, ...], words: list[str]) -> list[str]:
    """Every frame completed with every word, word by word, so that every second sentence still has all of them. Other
    braces stay as they are."""
    return [frame.replace("{a}", article(word)).replace("{word}", word) for word in words for frame in frames]
