"""What a de-identified film may still say. Whatever attribute is not named here is removed, at every depth.

    NUMBERS     kept where every value is a finite number
    CODES       kept where every value is one of a closed list
    KEYED       UIDs of this study, replaced by keyed ones
    KNOWN       UIDs of the standard, kept where the standard knows them
    BINARY      the picture and its tables
    SEQUENCES   kept, each item under these same rules
    EMPTIED     written without a value, because the standard wants the attribute to be there (type 2)

Attributes by PS3.6 keyword. Acquisition numbers are kept only where they say how the picture was made, not on whom.
"""

from __future__ import annotations

from collections.abc import Mapping

from foundation.readers.dicom.vocabulary import BODY_PARTS, MODALITIES, VIEWS


def _set(names: str) -> frozenset[str]:
    return frozenset(names.split())


NUMBERS = _set(
    "SeriesNumber AcquisitionNumber InstanceNumber ImagesInAcquisition "
    "SamplesPerPixel PlanarConfiguration NumberOfFrames Rows Columns PixelAspectRatio BitsAllocated BitsStored HighBit "
    "PixelRepresentation SmallestImagePixelValue LargestImagePixelValue PixelPaddingValue PixelPaddingRangeLimit "
    "RedPaletteColorLookupTableDescriptor GreenPaletteColorLookupTableDescriptor BluePaletteColorLookupTableDescriptor "
    "LUTDescriptor WindowCenter WindowWidth RescaleIntercept RescaleSlope PixelIntensityRelationshipSign "
    "LossyImageCompressionRatio PixelSpacing ImagerPixelSpacing NominalScannedPixelSpacing SliceThickness "
    "SpacingBetweenSlices SliceLocation ImagePositionPatient ImageOrientationPatient "
    "TemporalPositionIndex DimensionIndexValues InStackPositionNumber FrameTime FrameTimeVector FrameIncrementPointer "
    "KVP Exposure ExposureTime ExposureInuAs ExposureInmAs ExposureTimeInuS XRayTubeCurrent XRayTubeCurrentInuA "
    "DistanceSourceToDetector DistanceSourceToPatient EstimatedRadiographicMagnificationFactor "
    "ReconstructionDiameter DataCollectionDiameter GantryDetectorTilt TableHeight TotalCollimationWidth SpiralPitchFactor "
    "RepetitionTime EchoTime InversionTime FlipAngle MagneticFieldStrength EchoTrainLength EchoNumbers NumberOfAverages "
    "DiffusionBValue PixelBandwidth "
    "PhysicalUnitsXDirection PhysicalUnitsYDirection PhysicalDeltaX PhysicalDeltaY RegionSpatialFormat RegionDataType "
    "RegionLocationMinX0 RegionLocationMinY0 RegionLocationMaxX1 RegionLocationMaxY1"
)

_YES_NO = _set("YES NO")
_SIDES = _set("R L B U")
_ORIENTATIONS = frozenset(a + b + c for a in "APRLHF" for b in ("", *"APRLHF") for c in ("", *"APRLHF"))
_IMAGE_TYPES = _set(
    "ORIGINAL DERIVED PRIMARY SECONDARY OTHER AXIAL LOCALIZER HELIX VOLUME NONE MIXED RESAMPLED MPR PROJECTION_IMAGE "
    "M_SE M_FFE M_IR NORM DIS2D ND MULTIFRAME SINGLE A B BIPLANE PLANE MAX_IP MIN_IP RADIOGRAPH FLUORO ADC FA DIFFUSION"
)
CODES: Mapping[str, frozenset[str]] = {
    "Modality": MODALITIES,
    "BodyPartExamined": BODY_PARTS,
    "ViewPosition": frozenset(VIEWS),
    "Laterality": _SIDES,
    "ImageLaterality": _SIDES,
    "FrameLaterality": _SIDES,
    "PatientPosition": _set("HFP HFS HFDR HFDL FFDR FFDL FFP FFS LFP LFS RFP RFS AFDR AFDL PFDR PFDL"),
    "PatientOrientation": _ORIENTATIONS,
    "ImageType": _IMAGE_TYPES,
    "FrameType": _IMAGE_TYPES,
    "PhotometricInterpretation": _set("MONOCHROME1 MONOCHROME2 RGB YBR_FULL YBR_FULL_422 YBR_PARTIAL_420 YBR_ICT YBR_RCT")
    | {"PALETTE COLOR"},
    "PresentationIntentType": frozenset(("FOR PRESENTATION", "FOR PROCESSING")),
    "PresentationLUTShape": _set("IDENTITY INVERSE"),
    "PixelIntensityRelationship": _set("LIN LOG DISP"),
    "VOILUTFunction": _set("LINEAR LINEAR_EXACT SIGMOID"),
    "RescaleType": _set("HU OD US MGML Z_EFF ED EDW HU_MOD PCT"),
    "ModalityLUTType": _set("HU OD US"),
    "LossyImageCompression": _set("00 01"),
    "LossyImageCompressionMethod": _set("ISO_10918_1 ISO_14495_1 ISO_15444_1 ISO_15444_2"),
    "ConversionType": _set("DV DI DF WSD SD SI DRW SYN"),
    "BurnedInAnnotation": _YES_NO,
    "RecognizableVisualFeatures": _YES_NO,
    "QualityControlImage": _YES_NO,
    "PixelPresentation": _set("COLOR MONOCHROME MIXED TRUE_COLOR"),
    "VolumetricProperties": _set("VOLUME SAMPLED DISTORTED MIXED"),
    "ScanningSequence": _set("SE IR GR EP RM"),
    "SequenceVariant": _set("SK MTC SS TRSS SP MP OSP NONE"),
    "MRAcquisitionType": _set("2D 3D"),
}
KEYED = _set(
    "StudyInstanceUID SeriesInstanceUID SOPInstanceUID FrameOfReferenceUID ReferencedSOPInstanceUID ConcatenationUID "
    "SynchronizationFrameOfReferenceUID DimensionOrganizationUID"
)
KNOWN = _set("SOPClassUID ReferencedSOPClassUID")
BINARY = _set(
    "PixelData FloatPixelData DoubleFloatPixelData LUTData RedPaletteColorLookupTableData GreenPaletteColorLookupTableData "
    "BluePaletteColorLookupTableData"
)
SEQUENCES = _set(
    "SharedFunctionalGroupsSequence PerFrameFunctionalGroupsSequence PixelMeasuresSequence PlanePositionSequence "
    "PlaneOrientationSequence FrameContentSequence FrameVOILUTSequence PixelValueTransformationSequence "
    "CTImageFrameTypeSequence MRImageFrameTypeSequence XRay3DFrameTypeSequence "
    "ModalityLUTSequence VOILUTSequence SequenceOfUltrasoundRegions ReferencedImageSequence SourceImageSequence"
)
EMPTIED = (
    "PatientBirthDate", "PatientSex", "StudyDate", "StudyTime", "StudyID", "AccessionNumber", "ReferringPhysicianName",
    "Manufacturer",
)  # fmt: skip
