# Counts the sequences of some genomes: one task for each, and one for the sum.
cwlVersion: v1.0
class: Workflow
requirements:
  ScatterFeatureRequirement: {}
inputs:
  genomes: File[]
steps:
  sequences:
    run: sequences.cwl
    scatter: genome
    in: {genome: genomes}
    out: [number]
  total:
    run: total.cwl
    in: {numbers: sequences/number}
    out: [sum]
outputs:
  sum: {type: File, outputSource: total/sum}
