cwlVersion: v1.0
class: CommandLineTool
baseCommand: [grep, -c, ">"]
hints:
  DockerRequirement: {dockerPull: "alpine:3.20"}
requirements:
  ResourceRequirement: {coresMin: 1, ramMin: 256, outdirMin: 64, tmpdirMin: 64}
inputs:
  genome: {type: File, inputBinding: {position: 1}}
stdout: number.txt
outputs:
  number: stdout
