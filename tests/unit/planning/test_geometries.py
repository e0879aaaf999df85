"""The shapes of models that stand in for files."""

from dataclasses import replace

from op4ksr_core import BUNDLED_AUTOENCODER, BUNDLED_FLUX, load_autoencoder, load_flux
from op4ksr_core.planning.geometries import AUTOENCODERS, GEOMETRIES


def test_bundled_has_the_shapes_of_the_bundled_files() -> None:
    shape = GEOMETRIES["bundled"]
    assert shape.autoencoder == AUTOENCODERS["F16, bundled"] == load_autoencoder(BUNDLED_AUTOENCODER).params
    flux = load_flux(BUNDLED_FLUX)
    assert shape.flux == replace(flux.params, theta=shape.flux.theta)  # theta is no shape
    assert shape.text_tokens == flux.prompt(1)[0].shape[1]


def test_each_geometry_is_offered_under_one_name() -> None:
    assert sorted(GEOMETRIES) == ["bundled", "flux", "small"]
