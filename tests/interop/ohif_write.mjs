// Saves labels as OHIF would, through the adapters' own generateSegmentation.
//
//     node write.cjs JOBS.json
//
// JOBS.json is a list of {images, layers, segments, reverse, options, out}: the attributes of the source images in
// file order, files of uint8 labels (slice, row, column) per layer, names of the segments, whether the viewer's
// order of images is the other way round, options of generateSegmentation, and the file to write. As in OHIF, all
// layers of a segmentation share the metadata of all its segments.
import fs from 'fs';
import { dcmjs, generateSegmentation, metaData } from './adapters.mjs';

const TISSUE = { CodeValue: 'T-D0050', CodingSchemeDesignator: 'SRT', CodeMeaning: 'Tissue' };
const MODULES = {
  generalStudyModule: ['StudyInstanceUID', 'StudyDate', 'StudyTime', 'AccessionNumber'],
  patientModule: ['PatientID'],
  generalSeriesModule: ['StudyInstanceUID', 'SeriesInstanceUID', 'Modality', 'SeriesNumber', 'SeriesDescription'],
  generalImageModule: ['SOPClassUID', 'SOPInstanceUID', 'InstanceNumber'],
  sopCommonModule: ['SOPClassUID', 'SOPInstanceUID'],
  imagePlaneModule: [
    'FrameOfReferenceUID', 'Rows', 'Columns', 'ImageOrientationPatient', 'ImagePositionPatient', 'PixelSpacing',
    'SliceThickness',
  ],
};

let imagesById = new Map();

// SOPClassUID -> sopClassUID, PixelSpacing -> pixelSpacing
const camelCase = (keyword) => keyword.replace(/^([A-Z]+(?=[A-Z][a-z])|[A-Z])/, (start) => start.toLowerCase());

const provide = (type, imageId) => {
  const image = imagesById.get(imageId);
  if (!image || type === 'instance') return image;
  if (!MODULES[type]) return undefined;
  const module = Object.fromEntries(MODULES[type].map((keyword) => [camelCase(keyword), image[keyword]]));
  if (type === 'imagePlaneModule') {
    module.rowCosines = image.ImageOrientationPatient.slice(0, 3);
    module.columnCosines = image.ImageOrientationPatient.slice(3);
    [module.rowPixelSpacing, module.columnPixelSpacing] = image.PixelSpacing;
  }
  return module;
};

const segmentOf = (name, index) => ({
  SegmentNumber: String(index + 1),
  SegmentLabel: name,
  SegmentAlgorithmType: 'AUTOMATIC',
  SegmentAlgorithmName: 'ExampleNet',
  RecommendedDisplayCIELabValue: [30000, 40000, 20000],
  SegmentedPropertyCategoryCodeSequence: TISSUE,
  SegmentedPropertyTypeCodeSequence: TISSUE,
});

const layerOf = (file, { order, rows, columns, metadata }) => {
  const labels = new Uint8Array(fs.readFileSync(file));
  const labelmaps2D = order.map((slice) => {
    const pixelData = labels.slice(slice * rows * columns, (slice + 1) * rows * columns);
    return { segmentsOnLabelmap: [...new Set(pixelData)].filter(Boolean), pixelData, rows, columns };
  });
  return {
    segmentsOnLabelmap: [...new Set(labelmaps2D.flatMap((plane) => plane.segmentsOnLabelmap))],
    metadata,
    labelmaps2D,
  };
};

const save = ({ images, layers, segments, reverse, options, out }) => {
  const { Rows: rows, Columns: columns } = images[0];
  const idOf = (image) => `wadors:http://pacs/studies/1/series/2/instances/${image.SOPInstanceUID}/frames/1`;
  imagesById = new Map(images.map((image) => [idOf(image), image]));
  const order = images.map((_, index) => index);
  if (reverse) order.reverse();
  const metadata = [undefined, ...segments.map(segmentOf)];
  const made = layers.map((file) => layerOf(file, { order, rows, columns, metadata }));
  const sources = order.map((index) => ({
    imageId: idOf(images[index]),
    voxelManager: { getScalarData: () => new Uint16Array(rows * columns) },
  }));
  const { dataset } = generateSegmentation(sources, made.length === 1 ? made[0] : made, metaData, options);
  fs.writeFileSync(out, Buffer.from(dcmjs.data.datasetToDict(dataset).write()));
};

metaData.addProvider(provide);
JSON.parse(fs.readFileSync(process.argv[2])).forEach(save);
