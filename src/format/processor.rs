//! How a model wants its pictures: `preprocessor_config.json`, or `processor_config.json` around it.

use super::config::{Family, ModelConfig, VisionConfig};
use super::json::{Document, Object};
use crate::error::{Error, Result};
use std::path::Path;

/// Everything between a decoded picture and the tower's input.
#[derive(Debug, Clone, PartialEq)]
pub struct ImageProcessorConfig {
    /// How the picture is sized and cut.
    pub layout: PatchLayout,
    /// Whether pictures are resized to the layout at all.
    pub resize: bool,
    /// The filter used for it.
    pub resample: Resample,
    /// Whether palettes, alpha and grey become RGB first.
    pub convert_rgb: bool,
    /// What pixel values are multiplied by.
    pub rescale: Option<f64>,
    /// What is then subtracted from each channel, and what it is divided by.
    pub normalize: Option<([f64; 3], [f64; 3])>,
    /// Whether the file names the PIL-based processor rather than the default, tensor-based one.
    pub pil: bool,
}

/// How a picture is sized and cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PatchLayout {
    /// Qwen: sides rounded to whole merged patches, the area kept between two bounds.
    Flexible {
        /// The smallest area.
        min_pixels: usize,
        /// The largest area.
        max_pixels: usize,
        /// The side of a patch.
        patch: usize,
        /// Frames per patch.
        temporal_patch: usize,
        /// The side of the square of patches that become one token.
        merge: usize,
    },
    /// InternVL: the grid of square tiles whose shape is nearest to the picture's.
    Tiles {
        /// The side of a tile.
        side: usize,
        /// The fewest tiles.
        min: usize,
        /// The most tiles.
        max: usize,
        /// Whether a picture of several tiles is followed by a small copy of the whole.
        thumbnail: bool,
    },
}

/// A resampling filter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Resample {
    /// The nearest pixel.
    Nearest,
    /// Lanczos with three lobes.
    Lanczos,
    /// Linear in both axes.
    Bilinear,
    /// Cubic with a = -0.5 in both axes.
    Bicubic,
}

const CLIP_MEAN: [f64; 3] = [0.481_454_66, 0.457_827_5, 0.408_210_73];
const CLIP_STD: [f64; 3] = [0.268_629_54, 0.261_302_58, 0.275_777_11];
const IMAGENET_MEAN: [f64; 3] = [0.485, 0.456, 0.406];
const IMAGENET_STD: [f64; 3] = [0.229, 0.224, 0.225];

/// Bounds beyond which a value is a mistake.
const WIDEST: usize = 1 << 20;
const LARGEST: usize = 1 << 40;

const PROCESSOR: &str = "processor_config.json";
const PREPROCESSOR: &str = "preprocessor_config.json";

impl ImageProcessorConfig {
    /// Reads the image processor of the vision-language model in `folder`.
    pub fn read(folder: &Path, model: &ModelConfig) -> Result<Self> {
        // InternVL's authors keep the settings in config.json and the rest in code; their preprocessor file
        // describes a processor that nobody runs.
        if let Some(VisionConfig::InternVit(tower)) = &model.vision
            && tower.original
        {
            let tiling = tower.tiling;
            return Ok(Self {
                layout: PatchLayout::Tiles {
                    side: tower.image,
                    min: tiling.map_or(1, |tiling| tiling.min),
                    max: tiling.map_or(1, |tiling| tiling.max),
                    thumbnail: tiling.is_some_and(|tiling| tiling.thumbnail),
                },
                resize: true,
                resample: Resample::Bicubic,
                convert_rgb: true,
                rescale: Some(1.0 / 255.0),
                normalize: Some((IMAGENET_MEAN, IMAGENET_STD)),
                pil: true,
            });
        }
        for name in [PROCESSOR, PREPROCESSOR] {
            let path = folder.join(name);
            if path.exists()
                && let Some(config) = Self::from_document(&Document::read(&path)?, model.family)?
            {
                config.check(&path, model)?;
                return Ok(config);
            }
        }
        Err(Error::file(folder, format!("holds no image processor: neither {PREPROCESSOR} nor {PROCESSOR}")))
    }

    /// The pieces that pictures are cut into must be those the tower was built for.
    fn check(&self, path: &Path, model: &ModelConfig) -> Result<()> {
        let sizes = match (self.layout, &model.vision) {
            (
                PatchLayout::Flexible { patch, temporal_patch, merge, .. },
                Some(VisionConfig::Qwen2Vl(tower) | VisionConfig::Qwen25Vl { tower, .. }),
            ) => vec![
                ("patch_size", patch, tower.patch),
                ("temporal_patch_size", temporal_patch, tower.temporal_patch),
                ("merge_size", merge, tower.merge),
            ],
            (PatchLayout::Tiles { side, .. }, Some(VisionConfig::InternVit(tower))) => {
                vec![("size", side, tower.image)]
            }
            _ => Vec::new(),
        };
        match sizes.into_iter().find(|(_, ours, towers)| ours != towers) {
            None => Ok(()),
            Some((key, ours, towers)) => {
                let what = format!("{key}: {ours}, but the image tower of config.json is built for {towers}");
                Err(Error::file(path, what))
            }
        }
    }

    /// Reads the bytes of either file; `None` if it is a processor that says nothing about images.
    pub fn parse(path: &Path, bytes: &[u8], family: Family) -> Result<Option<Self>> {
        Self::from_document(&Document::parse(path, bytes)?, family)
    }

    fn from_document(document: &Document, family: Family) -> Result<Option<Self>> {
        let root = document.root()?;
        let object = match root.object("image_processor")? {
            Some(nested) => nested,
            None if root.get("image_processor_type").is_none() && root.get("image_mean").is_none() => {
                return Ok(None);
            }
            None => root,
        };
        let kind = object.string("image_processor_type")?.unwrap_or_default();
        let layout = match family {
            Family::Qwen2Vl | Family::Qwen25Vl => flexible(&object)?,
            Family::InternVl => tiles(&object)?,
            _ => return Err(object.fault("image_processor_type", "this model takes no images")),
        };
        let flag = |key| object.boolean(key).map(|flag| flag.unwrap_or(true));
        let factor = object.positive("rescale_factor")?.unwrap_or(1.0 / 255.0);
        let mean = channels(&object, "image_mean", CLIP_MEAN)?;
        let std = channels(&object, "image_std", CLIP_STD)?;
        if std.contains(&0.0) {
            return Err(object.fault("image_std", "a deviation of 0 cannot be divided by"));
        }
        Ok(Some(Self {
            layout,
            resize: flag("do_resize")?,
            resample: resample(&object)?,
            convert_rgb: flag("do_convert_rgb")?,
            rescale: flag("do_rescale")?.then_some(factor),
            normalize: flag("do_normalize")?.then_some((mean, std)),
            pil: kind.ends_with("Pil"),
        }))
    }
}

fn flexible(object: &Object) -> Result<PatchLayout> {
    let count = |key, default| object.whole(key, 1..=WIDEST).map(|count| count.unwrap_or(default));
    // Two spellings, and where both are given the older one counts.
    let size = object.object("size")?;
    let area = |key, edge, default| {
        let sized = match &size {
            Some(size) => size.whole(edge, 1..=LARGEST)?,
            None => None,
        };
        Ok(object.whole(key, 1..=LARGEST)?.or(sized).unwrap_or(default))
    };
    let min_pixels = area("min_pixels", "shortest_edge", 56 * 56)?;
    let max_pixels = area("max_pixels", "longest_edge", 28 * 28 * 1280)?;
    if min_pixels > max_pixels {
        return Err(
            object.fault("min_pixels", format!("{min_pixels} is more than the {max_pixels} of max_pixels"))
        );
    }
    Ok(PatchLayout::Flexible {
        min_pixels,
        max_pixels,
        patch: count("patch_size", 14)?,
        temporal_patch: count("temporal_patch_size", 2)?,
        merge: count("merge_size", 2)?,
    })
}

fn tiles(object: &Object) -> Result<PatchLayout> {
    let count = |key, default| object.whole(key, 1..=WIDEST).map(|count| count.unwrap_or(default));
    let side = match object.object("size")? {
        None => 384,
        Some(size) => {
            let edge = |key| size.whole(key, 1..=WIDEST)?.ok_or_else(|| size.fault(key, "missing"));
            let (height, width) = (edge("height")?, edge("width")?);
            if height != width {
                return Err(object.fault("size", format!("expected square tiles, got {height} by {width}")));
            }
            height
        }
    };
    // `crop_to_patches` is false in the published files and read by nobody: the model's processor crops always.
    let (min, max) = (count("min_patches", 1)?, count("max_patches", 12)?);
    if min > max {
        return Err(object.fault("min_patches", format!("{min} is more than the {max} of max_patches")));
    }
    Ok(PatchLayout::Tiles { side, min, max, thumbnail: true })
}

fn resample(object: &Object) -> Result<Resample> {
    match object.whole("resample", 0..=5)? {
        Some(0) => Ok(Resample::Nearest),
        Some(1) => Ok(Resample::Lanczos),
        Some(2) => Ok(Resample::Bilinear),
        None | Some(3) => Ok(Resample::Bicubic),
        Some(other) => Err(object.fault("resample", format!("filter {other} is not supported, only 0 to 3"))),
    }
}

/// A value per channel; a lone number serves all three.
fn channels(object: &Object, key: &str, default: [f64; 3]) -> Result<[f64; 3]> {
    if object.get(key).is_some_and(|value| value.is_number()) {
        return Ok(object.number(key)?.map_or(default, |value| [value; 3]));
    }
    match object.numbers(key)?.as_deref() {
        None => Ok(default),
        Some(&[red, green, blue]) => Ok([red, green, blue]),
        Some(other) => Err(object.fault(key, format!("expected 3 numbers, got {}", other.len()))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn parse(value: &Value, family: Family) -> Result<Option<ImageProcessorConfig>> {
        ImageProcessorConfig::parse(Path::new(PREPROCESSOR), value.to_string().as_bytes(), family)
    }

    fn qwen() -> Value {
        json!({
            "min_pixels": 3136, "max_pixels": 12845056, "patch_size": 14, "temporal_patch_size": 2,
            "merge_size": 2, "image_mean": [0.48145466, 0.4578275, 0.40821073],
            "image_std": [0.26862954, 0.26130258, 0.27577711], "image_processor_type": "Qwen2VLImageProcessor"
        })
    }

    #[test]
    fn both_spellings_of_the_area_are_one() {
        let old = parse(&qwen(), Family::Qwen2Vl).unwrap().unwrap();
        let mut inner = qwen();
        inner.as_object_mut().unwrap().retain(|key, _| !key.ends_with("pixels"));
        inner["size"] = json!({"shortest_edge": 3136, "longest_edge": 12845056});
        let nested = json!({"image_processor": inner, "processor_class": "Qwen2VLProcessor"});
        assert_eq!(parse(&nested, Family::Qwen25Vl).unwrap().unwrap(), old);
        assert_eq!(old.normalize, Some((CLIP_MEAN, CLIP_STD)));
        let (min_pixels, max_pixels) = (3136, 12_845_056);
        let layout = PatchLayout::Flexible { min_pixels, max_pixels, patch: 14, temporal_patch: 2, merge: 2 };
        assert_eq!(old.layout, layout);
    }

    #[test]
    fn tiles_are_read_as_published() {
        let file = json!({
            "crop_to_patches": false, "do_convert_rgb": true, "do_normalize": true, "do_rescale": true,
            "do_resize": true, "image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225],
            "image_processor_type": "GotOcr2ImageProcessorFast", "max_patches": 12, "min_patches": 1,
            "resample": 3, "rescale_factor": 0.00392156862745098, "size": {"height": 448, "width": 448}
        });
        let expected = ImageProcessorConfig {
            layout: PatchLayout::Tiles { side: 448, min: 1, max: 12, thumbnail: true },
            resize: true,
            resample: Resample::Bicubic,
            convert_rgb: true,
            rescale: Some(0.003_921_568_627_450_98),
            normalize: Some((IMAGENET_MEAN, IMAGENET_STD)),
            pil: false,
        };
        assert_eq!(parse(&file, Family::InternVl).unwrap().unwrap(), expected);
    }

    #[test]
    fn bad_values_name_their_key() {
        let complaint = |key: &str, to: Value| {
            let mut file = qwen();
            file[key] = to;
            parse(&file, Family::Qwen2Vl).unwrap_err().to_string()
        };
        assert!(complaint("min_pixels", json!(1u64 << 30)).contains("min_pixels: 1073741824 is more than"));
        assert!(complaint("patch_size", json!(0)).contains("patch_size: expected a whole number"));
        assert!(complaint("image_std", json!([1, 0, 1])).contains("image_std: a deviation of 0"));
        assert!(complaint("image_mean", json!([1])).contains("image_mean: expected 3 numbers, got 1"));
        assert!(complaint("resample", json!(4)).contains("resample: filter 4 is not supported"));
    }

    #[test]
    fn a_processor_without_images_is_passed_over() {
        assert_eq!(parse(&json!({"processor_class": "X"}), Family::Qwen2Vl).unwrap(), None);
    }
}
