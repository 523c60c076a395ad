"""Train or fine-tune an image classifier.

    accelerate launch -m recipes.train_images
    accelerate launch -m recipes.train_images --config recipes/cifar10.yaml --train.lr 5e-4

Without a configuration it takes embedded_digits.yaml and learns to read handwritten digits, in minutes on a laptop. The
same command again continues the run.
"""

from recipes.config import launch
from recipes.image_runs import Recipe, make_task
from recipes.ladder import finish
from recipes.loop import train


def main(recipe: Recipe) -> None:
    """Train, then choose the final weights."""
    task = make_task(recipe)
    run = train(task, recipe.train, recipe)
    finish(task, run, recipe.train, recipe.expected, ["valid", "test"] if "test" in task.images.sizes else ["valid"])


if __name__ == "__main__":
    launch(Recipe, main, config="embedded_digits.yaml")
