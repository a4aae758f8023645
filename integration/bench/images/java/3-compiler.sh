#!/bin/bash
. "$(dirname "$0")/install.sh"
packages openjdk-17-jdk-headless
